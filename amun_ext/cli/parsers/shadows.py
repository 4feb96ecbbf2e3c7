"""The arguments of amun shadows."""

from pathlib import Path

from amun_ext.cli.arguments import CHECKPOINT, DATA, RESUMES, Commands, add_command, add_ids, add_options
from amun_ext.cli.parsers.method import add_method


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "shadows",
        "train shadow models of one request and one method, for an audit's per-sample attack (U-LiRA)",
        "example:\n"
        "  amun shadows --model forgotten/model.safetensors --data fashion-mnist-mini --num-models 16 --workers 2 "
        "--out shadows\n\n"
        "Give the flags of the amun forget request under audit. Each shadow is trained by the recipe in the\n"
        "checkpoint, on the retain set and on half of the ids and as many test samples, and then unlearns that half.\n"
        "The cost is that of training and of the request, --num-models times. Run the same command again to resume,\n"
        "or with a larger --num-models to add shadows.",
        RESUMES,
    )
    add_options(command, *DATA, *CHECKPOINT)
    add_ids(command, required=False)
    command.add_argument("--out", type=Path, required=True, help="folder of the shadows")
    command.add_argument("--num-models", type=int, default=16, help="even, at least 6 (default: %(default)s)")
    add_options(command, "--workers", "--init")
    add_method(command)
