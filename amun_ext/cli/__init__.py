"""The command line: a file per command, and what they share in `arguments` and `loading`."""

from amun_ext.cli.main import COMMANDS, main, parser

__all__ = ["COMMANDS", "main", "parser"]
