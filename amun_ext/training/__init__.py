"""The training loop `fit`, which trains original models, retrains and runs every fine-tuning method."""

from amun_ext.training.loop import Epoch, RunOptions, fit
from amun_ext.training.parts import DataPart, Pass, Teacher, crop_and_flip
from amun_ext.training.recipe import PAPER_TRAINING, Recipe

__all__ = ["PAPER_TRAINING", "DataPart", "Epoch", "Pass", "Recipe", "RunOptions", "Teacher", "crop_and_flip", "fit"]
