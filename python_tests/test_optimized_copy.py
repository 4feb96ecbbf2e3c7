"""The optimized copy: as the model up to rounding, with every BatchNorm folded that may be."""

import threading

import pytest
import torch
import torch.nn.functional as F
from optimized_copy_tools import CHANNELS, Net, assert_alike, check_copy, images, norms_in, own, randomised
from torch import nn

from amun_ext import models
from amun_ext.models.optimized_copy import optimized_copy

pytestmark = pytest.mark.same_inputs  # rounding is held against a threshold


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_all_norms_are_folded_and_the_logits_are_equal(name, channels, device, monkeypatch):
    # Smooth, for no ReLU or maximum of a deep network to flip by rounding.
    smooth, mean = nn.functional.softplus, nn.functional.avg_pool2d
    monkeypatch.setattr(nn.functional, "relu", lambda x, inplace=False: smooth(x))
    monkeypatch.setattr(
        nn.functional, "max_pool2d", lambda x, size, *_, **how: mean(x, size, ceil_mode=how["ceil_mode"])
    )
    model = randomised(models.build(name, num_classes=7, in_channels=channels, width=8)).to(device)
    x = images(16, channels, 16, device=device)
    twin = optimized_copy(model, x[:2])
    assert norms_in(model) > 0
    assert norms_in(twin) == 0
    assert_alike(twin, model, x, *((1e-5, 0.02) if device == "cpu" else (0.05, 0.5)))  # TF32 on a GPU
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert not any(module.training for module in twin.modules())


def test_gradients_of_a_smooth_network_to_the_last_digits():
    check_copy(Net())


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Flatten(2), nn.Conv1d(3, CHANNELS, 3), nn.BatchNorm1d(CHANNELS), nn.Tanh(), nn.AdaptiveAvgPool1d(1)),
        (nn.Unflatten(1, (3, 1)), nn.Conv3d(3, CHANNELS, (1, 3, 3)), nn.BatchNorm3d(CHANNELS), nn.AvgPool3d((1, 6, 6))),
        (nn.Flatten(), nn.Linear(192, CHANNELS), nn.BatchNorm1d(CHANNELS), nn.Tanh()),
        (nn.Conv2d(3, CHANNELS, 3), nn.BatchNorm2d(CHANNELS, affine=False), nn.Tanh(), nn.AvgPool2d(6)),
        (nn.Conv2d(3, CHANNELS, 3, groups=3), nn.BatchNorm2d(CHANNELS, eps=0.1), nn.Tanh(), nn.AvgPool2d(6)),
        (nn.Conv2d(3, CHANNELS, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(CHANNELS), nn.AvgPool2d(8)),
    ],
)
def test_folds_every_kind(layers):
    check_copy(nn.Sequential(*layers, nn.Flatten(), nn.Linear(CHANNELS, 5)))


def first_replaced(**parts):
    """A Net with another part in place of one of its own."""
    model = Net()
    for name, part in parts.items():
        setattr(model, name, part)
    return model


def weight_normed():
    model = Net()
    nn.utils.parametrizations.weight_norm(model.conv1)
    return model


def shared():
    model = Net(channels=CHANNELS)
    model.conv2.weight = model.conv1.weight
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 1), model)


def renamed(name, first):
    """A Net that has the layer `name` as `also` too."""
    model = own(first=first)
    model.also = getattr(model, name)
    return model


class Doubling(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Shifting(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


class AlwaysTraining(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)


class Trains(Net):
    def train(self, mode=True):
        super().train(mode)
        self.bn1.train()
        return self


def used_also(use):
    """What conv1 returns goes to bn1, and elsewhere."""
    return own(first=lambda net, x: net.bn1(h := net.conv1(x)) + 0 * use(h).sum())


# [N, L, C] with L = C: a linear layer's classes are last, the channels of BatchNorm1d second.
TOKENS = [nn.Flatten(2), nn.Linear(64, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Flatten()]
BN1 = ("running_mean", "running_var", "weight")

# The model and how many norms are left: where the second pair can be folded and the first cannot, one.
NOT_FOLDED = {
    "output with two users": (lambda: own(first=lambda net, x: net.bn1(h := net.conv1(x)) + h), 1),
    "convolution used twice": (
        lambda: own(first=lambda net, x: net.bn1(net.conv1(x)) + net.conv1(x.flip(2))),
        1,
    ),
    "norm used twice": (
        lambda: own(first=lambda net, x: net.bn1(net.conv1(x)) + net.bn1(x.repeat(1, 2, 1, 1))),
        1,
    ),
    "norm behind another layer": (lambda: own(first=lambda net, x: net.bn1(torch.relu(net.conv1(x)))), 1),
    "norm without statistics": (lambda: first_replaced(bn1=nn.BatchNorm2d(CHANNELS, track_running_stats=False)), 1),
    "linear norm without weights": (
        lambda: first_replaced(head=nn.Sequential(nn.Linear(CHANNELS, 5), nn.BatchNorm1d(5, affine=False))),
        1,
    ),
    "functional norm": (
        lambda: own(first=lambda net, x: F.batch_norm(net.conv1(x), *(getattr(net.bn1, name) for name in BN1))),
        1,
    ),
    "norm of another dimension": (lambda: nn.Sequential(*TOKENS, nn.Linear(9, 5)), 1),
    "weights used elsewhere": (
        lambda: own(first=lambda net, x: net.bn1(net.conv1(x)) + F.conv2d(x, net.conv1.weight, padding=1)),
        2,
    ),
    "parametrized layer": (weight_normed, 1),
    "subclasses": (lambda: first_replaced(conv1=Doubling(3, CHANNELS, 3), bn2=Shifting(CHANNELS)), 2),
    "detached": (lambda: used_also(torch.Tensor.detach), 1),
    "cloned": (lambda: used_also(torch.Tensor.clone), 1),
    "asked for NaN": (lambda: used_also(torch.Tensor.isnan), 1),
    "indexed": (lambda: used_also(lambda h: h[0]), 1),
    "norm that trains": (Trains, 1),
    "a norm of the user's own": (lambda: first_replaced(bn1=AlwaysTraining(CHANNELS)), 1),
    "a layer of two names": (lambda: renamed("conv1", lambda net, x: net.bn1(net.also(x))), 0),
    "a norm of two names": (lambda: renamed("bn1", lambda net, x: net.also(net.conv1(x))), 2),
    "shared weights": (shared, 0),
}


@pytest.mark.parametrize(("make", "left"), NOT_FOLDED.values(), ids=NOT_FOLDED.keys())
def test_what_must_not_be_folded(make, left):
    check_copy(make(), left)


def test_control_flow_by_data():
    model = own(forward=lambda net, x: net.classify(net.first(x) if x.mean() > 0.6 else net.conv1(x)))
    twin = check_copy(model, 2)
    assert_alike(twin, model, images().clamp_min(0.8))


def test_other_threads_are_not_affected():
    """A model that nobody has given away keeps working while others are prepared."""
    own, x, wrong, done = Net().eval(), images(), [], threading.Event()
    expected = own(x)

    def use():
        while not done.is_set():
            try:
                if not torch.equal(own(x), expected):
                    wrong.append("another answer")
            except Exception as error:
                wrong.append(repr(error))

    call, attribute = nn.Module.__call__, nn.Module.__getattr__
    patched = []

    class Spy(Net):
        def forward(self, x):
            patched.append(nn.Module.__call__ is not call or nn.Module.__getattr__ is not attribute)
            return super().forward(x)

    thread = threading.Thread(target=use)
    thread.start()
    try:
        for _ in range(3):
            assert norms_in(optimized_copy(randomised(Spy()), x)) == 0
    finally:
        done.set()
        thread.join()
    assert not wrong
    assert patched
    assert not any(patched)
