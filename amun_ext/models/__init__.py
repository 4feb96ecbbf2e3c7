"""Image classifiers by name, or from the user's own function: images [N, C, H, W] in [0, 1] to logits [N, K]."""

from amun_ext.models.build import MODELS, build
from amun_ext.models.checkpoint import load_checkpoint, read_metadata, save_checkpoint
from amun_ext.models.predict import accuracy, predict

__all__ = ["MODELS", "accuracy", "build", "load_checkpoint", "predict", "read_metadata", "save_checkpoint"]
