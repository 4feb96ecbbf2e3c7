"""The parser of the command line. Only `dispatch` imports torch, so that --help and errors come at once."""

import argparse
import time
from collections.abc import Sequence
from importlib import import_module

import amun_ext
from amun_ext.cli.arguments import Parser

# In the order of --help.
COMMANDS = (
    *("demo", "train", "prepare", "plan", "forget", "request", "replay", "ledger", "purge"),
    *("search", "compare", "tune", "audit", "references", "shadows", "reproduce", "info"),
)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The parsed options; `command` has the arguments themselves, `started` the time."""
    options = parser().parse_args(arguments)
    options.command, options.started = [*arguments], time.perf_counter()
    return options


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="amun",
        description="Make a trained image classifier forget some of its training samples, and measure how well it did.",
        epilog="Start with: amun demo",
    )
    top.add_argument("--version", action="version", version=f"amun_ext {amun_ext.__version__}")
    commands = top.add_subparsers(required=True, metavar="command")
    for name in COMMANDS:
        import_module(f"amun_ext.cli.parsers.{name}").add(commands)
    return top
