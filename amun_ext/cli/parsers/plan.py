"""The arguments of amun plan."""

from amun_ext.cli.arguments import CHECKPOINT, DATA, Commands, add_command, add_options, count
from amun_ext.cli.parsers.method import add_method


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "plan",
        "predict time and memory of a request for any number of samples, references and devices",
        "example:\n"
        "  amun plan --model original.safetensors --data fashion-mnist-mini --forget 1000 --train 60000 \\\n"
        "      --references 32 --devices 8\n\n"
        "Runs a few batches of each stage on this device, and multiplies. Nothing is written. Seconds of the network\n"
        "follow from --bandwidth. docs/guides/cost.md has the arithmetic and how far it was off.",
    )
    add_options(command, *DATA, *CHECKPOINT)
    command.add_argument("--forget", type=count, required=True, metavar="N", help="samples to forget")
    command.add_argument("--train", type=count, metavar="N", help="training samples (default: those of --data)")
    command.add_argument("--references", type=count, metavar="N", help="reference models of an audit (default: none)")
    command.add_argument("--devices", type=count, default=1, metavar="N", help="ranks, each with one device like this")
    command.add_argument(
        "--bandwidth", type=float, default=10.0, help="GB that a device sends a second (default: %(default)s)"
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_options(command, "--init")
    add_method(command)
