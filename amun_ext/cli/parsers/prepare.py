"""The arguments of amun prepare."""

from pathlib import Path

from amun_ext.cli.arguments import (
    CHECKPOINT,
    DATA,
    RESUMES,
    Commands,
    add_command,
    add_options,
    add_recipe,
)


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "prepare",
        "compute out-of-fold logits of the training set, for requests by out-of-fold distillation",
        "example:\n"
        "  amun prepare --model original.safetensors --data fashion-mnist-mini --workers 2 --out targets.safetensors\n"
        "  amun forget --model original.safetensors --data fashion-mnist-mini --ids 3,17 --method distill "
        "--targets targets.safetensors --out forgotten\n\n"
        "Each model is trained on all folds but one; its logits of that fold are kept, the model is not. This costs\n"
        "as much as training the original --folds - 1 times, once for all requests.",
        RESUMES,
    )
    add_options(command, *DATA, *CHECKPOINT)
    command.add_argument("--out", type=Path, required=True, help="file of the targets (.safetensors)")
    models = command.add_mutually_exclusive_group()
    models.add_argument("--folds", type=int, default=5, help="number of folds, at least 2 (default: %(default)s)")
    models.add_argument(
        "--references",
        type=Path,
        help="train no model, but take the mean logits of the references that were not trained on the sample: folder "
        "written by amun references --keep-logits. No audit may judge with them",
    )
    add_options(command, "--workers", "--init", "--overwrite")
    add_recipe(command, "training (default: the recipe in the checkpoint)")
