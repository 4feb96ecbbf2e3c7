"""amun info: what is installed here."""

import argparse

from amun_ext import info
from amun_ext.cli.arguments import Commands, add_command


def add(commands: Commands) -> None:
    add_command(commands, "info", run, "print versions, available ops per device, and build flags")


def run(_: argparse.Namespace) -> None:
    print(info.text())
