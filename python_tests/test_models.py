"""Architectures: shapes, sizes, the likeness to torchvision's, and a user's own."""

import pytest
import torch
from torch import nn

from amun_ext import models
from amun_ext.data.vision import import_torchvision
from amun_ext.validation import InputError

NAMES = sorted(models.MODELS)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (2, 19)])
def test_logits_of_any_size_with_gradients(name, channels, size):
    torch.manual_seed(0)
    model = models.build(name, num_classes=7, in_channels=channels, width=4)
    images = torch.rand(3, channels, size, size, requires_grad=True)
    logits = model(images)
    assert logits.shape == (3, 7)
    logits.sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("name", "count"), [("small-cnn", 56_554), ("resnet18", 11_172_810), ("vgg19", 20_039_370)])
def test_default_width(name, count):
    with torch.device("meta"):
        assert parameters(models.build(name, num_classes=10, in_channels=1)) == count


@pytest.mark.parametrize("name", NAMES)
def test_width_scales_all_layers(name):
    narrow, wide = (models.build(name, num_classes=10, in_channels=3, width=width) for width in (4, 8))
    for one, two in zip(narrow.modules(), wide.modules(), strict=True):
        if isinstance(one, nn.Conv2d):
            assert two.out_channels == 2 * one.out_channels


def test_resnet18_is_torchvisions_with_a_small_stem():
    theirs = import_torchvision().models.resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    ours = models.build("resnet18", num_classes=10, in_channels=3)
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(ours(images), theirs(images))


def test_the_authors_resnet18_halves_where_the_image_is_halved():
    plain, theirs = (
        models.build(name, num_classes=10, in_channels=3, width=4) for name in ("resnet18", "resnet18-amun")
    )
    theirs.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 16, 16)
    for each in (plain, theirs):
        each.eval()
    for name, layer in plain.named_children():
        seen = theirs.get_submodule(name)(images)
        halved = layer[0](images) / 2 if name in ("layer2", "layer3", "layer4") else None
        images = layer(images)
        torch.testing.assert_close(seen, images if halved is None else layer[1](halved))


def test_vgg19_features_are_torchvisions():
    theirs = import_torchvision().models.vgg19_bn(num_classes=10, init_weights=False).features
    ours = models.build("vgg19", num_classes=10, in_channels=3).get_submodule("features")
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images))


def own_model(*, num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 4, num_classes))


def own_number(**sizes):
    return 3


NOT_CALLABLE = 1


def test_own_function():
    model = models.build(f"{__name__}:own_model", num_classes=5, in_channels=3)
    assert model(torch.rand(2, 3, 2, 2)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "resnet",
            {},
            "model must be one of small-cnn, .* or module:function, got 'resnet'",
        ),
        ("small-cnn", {"num_classes": 1}, "num_classes must be an integer of at least 2, got 1"),
        ("small-cnn", {"num_classes": 2.0}, "num_classes must be an integer of at least 2, got 2.0"),
        ("small-cnn", {"in_channels": 0}, "in_channels must be an integer of at least 1"),
        ("small-cnn", {"width": 0}, "width must be an integer of at least 1"),
        ("no_such_module:function", {}, "importable module:function, got No module named"),
        (f"{__name__}:absent", {}, "has no attribute 'absent'"),
        (f"{__name__}:NOT_CALLABLE", {}, "must be a function, got int"),
        (f"{__name__}:own_number", {}, r"own_number returns must be an nn.Module, got int"),
        (f"{__name__}:own_model", {"width": 8}, "width must be left to"),
    ],
)
def test_wrong(name, change, message):
    with pytest.raises(InputError, match=message):
        models.build(name, **({"num_classes": 10, "in_channels": 1} | change))
