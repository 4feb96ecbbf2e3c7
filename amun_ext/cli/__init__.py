"""The command line: the arguments of each command in `parsers`, what it does in a file of its name, and what commands
share in `arguments` and `loading`."""

from amun_ext.cli.main import main
from amun_ext.cli.parser import COMMANDS, parser

__all__ = ["COMMANDS", "main", "parser"]
