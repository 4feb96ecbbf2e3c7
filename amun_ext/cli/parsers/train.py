"""The arguments of amun train."""

from pathlib import Path

from amun_ext.cli.arguments import DATA, RESUMES, Commands, add_command, add_options, add_recipe
from amun_ext.defaults import MODELS
from amun_ext.recipe import RECIPES, TRAINING


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "train",
        "train a classifier and write its checkpoint",
        "example:\n  amun train --data fashion-mnist-mini --model small-cnn --epochs 60 --lr 0.05 --schedule cosine "
        "--out original.safetensors\n\n"
        "Run the same command again to resume from the last epoch; if the training is done, this does nothing.",
        RESUMES,
    )
    add_options(command, *DATA)
    command.add_argument("--model", required=True, help=f"{', '.join(MODELS)}, or your own module:function")
    command.add_argument("--width", type=int, help="channels of the first layer (default: that of the architecture)")
    command.add_argument("--init", type=Path, help="checkpoint with the initial weights (default: random, by --seed)")
    command.add_argument("--out", type=Path, required=True, help="checkpoint to write (.safetensors)")
    add_options(command, "--overwrite")
    command.add_argument(
        "--recipe",
        choices=RECIPES,
        help="the published recipe for CIFAR-10 (200 epochs), or a fast one (20 epochs, large batches, bfloat16); "
        "the options below change single fields of it",
    )
    add_recipe(command, "training", TRAINING)
