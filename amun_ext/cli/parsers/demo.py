"""The arguments of amun demo."""

from pathlib import Path

from amun_ext.cli.arguments import Commands, add_command, add_options


def add(commands: Commands) -> None:
    command = add_command(
        commands, "demo", "train a small network on the embedded images, forget a tenth, compare with retraining"
    )
    help_of_out = "folder of the results (default: %(default)s)"
    command.add_argument("--out", type=Path, default=Path("amun-demo"), help=help_of_out)
    add_options(command, "--seed", "--with-images", "--tables")
