"""The arguments of amun replay."""

from pathlib import Path

from amun_ext.cli.arguments import Commands, add_command


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "replay",
        "repeat a request from its record, and compare the models",
        "example:\n"
        "  amun replay forgotten/record.json --out again\n\n"
        "Run it in the folder where the request was run: relative paths are kept. On the same machine with the same\n"
        "versions the models are bit-equal.\n"
        "exit status: 0 equal, 7 not equal; otherwise that of amun forget",
    )
    command.add_argument("record", type=Path, help="record.json of amun forget")
    command.add_argument("--out", type=Path, required=True, help="a new folder of the results")
    command.add_argument(
        "--code",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="your own code that the request uses; no other code is run",
    )
