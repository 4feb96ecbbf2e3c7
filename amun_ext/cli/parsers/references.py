"""The arguments of amun references."""

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
        "references",
        "train reference models on random halves of the data, for the attacks of audits",
        "example:\n"
        "  amun references --model original.safetensors --data fashion-mnist-mini --num-models 16 --workers 2 "
        "--out references\n\n"
        "Writes the outputs of each model for every sample into the folder --out, 8 bytes per sample. Run the same\n"
        "command again to resume, or with a larger --num-models to add models. One set of references serves every\n"
        "request and method with this architecture, recipe and data.",
        RESUMES,
    )
    add_options(command, *DATA, *CHECKPOINT)
    command.add_argument("--out", type=Path, required=True, help="folder of the references")
    command.add_argument("--num-models", type=int, default=16, help="an even number (default: %(default)s)")
    command.add_argument(
        "--keep-logits",
        action="store_true",
        help="also keep the logits, 4 bytes more for each sample and class, for amun prepare --references",
    )
    add_options(command, "--workers", "--init")
    add_recipe(command, "training (default: the recipe in the checkpoint)")
