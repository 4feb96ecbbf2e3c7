"""The training loop `fit`, which trains original models, retrains and runs every fine-tuning method."""

from amun_ext.recipe import PAPER_TRAINING, Recipe
from amun_ext.training.loop import Epoch, RunOptions, fit
from amun_ext.training.parts import DataPart, Pass, Teacher, crop_and_flip

__all__ = ["PAPER_TRAINING", "DataPart", "Epoch", "Pass", "Recipe", "RunOptions", "Teacher", "crop_and_flip", "fit"]
