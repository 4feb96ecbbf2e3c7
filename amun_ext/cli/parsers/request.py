"""The arguments of amun request."""

from pathlib import Path

from amun_ext.cli.arguments import CHECKPOINT, DATA, Commands, add_command, add_ids, add_options


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "request",
        "add a request to a list of pending ones, which amun forget --pending forgets together in one fine-tuning",
        "example:\n"
        "  amun request --model original.safetensors --data photos --ids-file request.csv --pending pending.csv\n"
        "  amun forget --model original.safetensors --data photos --pending pending.csv --out forgotten\n\n"
        "The list contains row numbers and no names. Any model that was trained on the same data will do.",
    )
    add_options(command, *DATA, *CHECKPOINT)
    add_ids(command, required=True)
    command.add_argument("--pending", type=Path, required=True, help=".csv file of pending requests, made if missing")
