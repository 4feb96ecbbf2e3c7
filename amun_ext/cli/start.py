"""--init: the initial weights of retraining."""

import argparse
import copy
from functools import partial
from pathlib import Path

from torch import nn

from amun_ext import models
from amun_ext.data import Splits
from amun_ext.deletion import Record
from amun_ext.models.reinitialise import Init


def add_init(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--init",
        type=Path,
        help="checkpoint with the weights that training started from, for a model that was fine-tuned (default: new "
        "random weights by the seed; your own module:function is called again; frozen weights stay)",
    )


def init(options: argparse.Namespace, splits: Splits, model: nn.Module, record: Record) -> Init:
    """The weights of --init, or the user's own function that builds the model; None for a built-in architecture."""
    if options.init is not None:
        start = copy.deepcopy(model)
        models.load_checkpoint(options.init, start)
        return start.state_dict()
    if ":" in (record.arch or ""):
        shape = {"num_classes": len(splits.classes), "in_channels": splits.train[0][0].shape[0]}
        return partial(models.build, str(record.arch), **shape)
    return None
