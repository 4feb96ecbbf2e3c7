"""The one training loop: original models, retraining from scratch and every fine-tuning method run through `fit`."""

from amun_ext.training.loop import Epoch, Run, fit
from amun_ext.training.parts import Part, Pass, crop_and_flip
from amun_ext.training.recipe import PAPER_TRAINING, Recipe

__all__ = ["PAPER_TRAINING", "Epoch", "Part", "Pass", "Recipe", "Run", "crop_and_flip", "fit"]
