"""build: a new model, of an architecture by name or by the user's own function."""

from collections.abc import Callable

from torch import nn

from amun_ext.models.resnet import resnet18, resnet18_amun
from amun_ext.models.small_cnn import small_cnn
from amun_ext.models.vgg import vgg19
from amun_ext.validation import call_user_function, is_integer, require

MOST = 100_000  # classes or channels; weights grow with their square

# name -> function(num_classes, in_channels[, width]); all take images of any size from 8x8 on
MODELS: dict[str, Callable[..., nn.Module]] = {
    "small-cnn": small_cnn,
    "resnet18": resnet18,
    "resnet18-amun": resnet18_amun,
    "vgg19": vgg19,
}


def build(name: str, *, num_classes: int, in_channels: int, width: int | None = None) -> nn.Module:
    """A new model with random weights: a name in MODELS, or "module:function", which is called with the keywords
    num_classes and in_channels and returns an nn.Module.

    `width` is the channel count of the first layer, which scales all others; each architecture has its own default.
    InputError for an unknown name, fewer than two classes, or other bad counts.
    """
    counts = {"num_classes": (num_classes, 2), "in_channels": (in_channels, 1)}
    counts |= {} if width is None else {"width": (width, 1)}
    for argument, (value, least) in counts.items():
        require(is_integer(value) and value >= least, argument, f"an integer of at least {least}", repr(value))
        require(value < MOST, argument, f"below {MOST}", value)
    sizes = {argument: int(value) for argument, (value, _) in counts.items()}
    if name in MODELS:
        return MODELS[name](**sizes)

    require(":" in name, "model", f"one of {', '.join(MODELS)} or module:function", repr(name))
    require(width is None, "width", f"left to {name}, whose function is called without it", width)
    model = call_user_function("model", name, **sizes)
    require(isinstance(model, nn.Module), f"what {name} returns", "an nn.Module", type(model).__name__)
    assert isinstance(model, nn.Module)
    return model
