"""amun info: what is installed here."""

import argparse

from amun_ext import info


def run(_: argparse.Namespace) -> None:
    print(info.text())
