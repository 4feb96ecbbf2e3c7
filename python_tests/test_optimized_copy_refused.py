"""Models that are not copied, and that the model is left alone."""

import copy
import functools
import warnings

import pytest
import torch
from optimized_copy_tools import CHANNELS, Net, answers, assert_alike, images, norms_in, randomised
from torch import nn

from amun_ext import models
from amun_ext.models.optimized_copy import optimized_copy
from amun_ext.models.state import eval_mode


def hooked(register):
    def make():
        model = Net()
        getattr(model.conv1, register)(lambda *arguments: None)
        return model

    return make


class CallsTwice(Net):
    def __call__(self, x):
        return super().__call__(2 * x)


class Uncopyable(Net):
    def __deepcopy__(self, memo):
        raise TypeError("not to be copied")


class Singleton(Net):
    def __deepcopy__(self, memo):
        return self


def holding(part):
    model = nn.Sequential(Net())
    model[0].conv1 = part
    return model


class Nan(Net):
    def forward(self, x):
        return super().forward(x) * torch.tensor([1, 1, float("nan"), 1, 1])


class Infinite(Net):
    def forward(self, x):
        return super().forward(x) + torch.tensor([0, 0, float("inf"), 0, 0])


class Gradientless(Net):
    def forward(self, x):
        return super().forward(x.detach())


class Pair(Net):
    def forward(self, x):
        return super().forward(x), x


class Failing(Net):
    def forward(self, x):
        raise ValueError("never runs")


def in_its_place():
    model = Net()
    model.compile(backend="eager")
    return model


def replaced_forward():
    model = Net()
    forward = model.forward
    model.forward = lambda x: 2 * forward(x)
    return model


def weight_normed():
    with warnings.catch_warnings(action="ignore"):
        return holding(nn.utils.weight_norm(nn.Conv2d(3, CHANNELS, 3)))


def scripted():
    with warnings.catch_warnings(action="ignore"):
        return torch.jit.script(nn.Sequential(Net()))


def traced():
    with warnings.catch_warnings(action="ignore"):
        return nn.Sequential(torch.jit.trace(Net().eval().requires_grad_(False), images()))


@pytest.mark.parametrize(
    "make",
    [
        hooked("register_forward_hook"),
        hooked("register_forward_pre_hook"),
        hooked("register_full_backward_hook"),
        hooked("register_full_backward_pre_hook"),
        weight_normed,
        CallsTwice,
        replaced_forward,
        lambda: torch.compile(Net(), backend="eager"),
        pytest.param(in_its_place, marks=pytest.mark.filterwarnings("ignore")),  # the compiler's
        scripted,
        traced,
        lambda: nn.DataParallel(Net()),
        lambda: holding(nn.LazyConv2d(CHANNELS, 3)),
        lambda: nn.Sequential(nn.LazyBatchNorm2d(), Net()),
        Net().double,
        Net().bfloat16,
        Net().half,
        lambda: holding(nn.Conv2d(3, CHANNELS, 3, dtype=torch.float64)),
        Uncopyable,
        Singleton,
        lambda: nn.Sequential(Singleton()),
        Nan,
        Infinite,
        Gradientless,
        Pair,
        Failing,
    ],
)
def test_the_model_itself(make):
    model = make()
    parameters = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    x = images(dtype=next((p.dtype for p in model.parameters()), None))
    assert optimized_copy(model, x) is model
    assert all(parameter.requires_grad == flag for parameter, flag in parameters)
    assert all(module.training == mode for module, mode in modes)


def test_the_model_itself_without_a_probe():
    assert optimized_copy(model := Net(), images(0)) is model


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.same_inputs
def test_the_model_itself_if_every_copy_differs(autocast):
    """A closure is not copied: what it counts, it counts for model and twin."""
    calls = []

    class Drifting(Net):
        def forward(self, x):
            calls.append(1)
            return super().forward(x) * (1 + 1e-4 * len(calls))

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):  # in bfloat16 the drift would drown
        assert optimized_copy(model := randomised(Drifting()), images()) is model


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_untouched_and_shares_nothing(training):
    model = randomised(nn.Sequential(nn.Dropout(), Net())).train(training)
    model[1].conv2.requires_grad_(False).train(not training)
    model[1].head.weight.grad = torch.ones_like(model[1].head.weight)
    tensors = dict(model.state_dict(keep_vars=True))
    before = copy.deepcopy(model.state_dict())
    flags = {name: (tensor.requires_grad, tensor.stride()) for name, tensor in tensors.items()}
    modules = [(name, type(module), module.training) for name, module in model.named_modules()]
    x, state = images(), torch.get_rng_state()

    twin = optimized_copy(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    for parameter in twin.parameters():
        parameter.data.zero_()
    for buffer in twin.buffers():
        buffer.zero_()
    twin.train()

    assert all(tensors[name] is tensor for name, tensor in model.state_dict(keep_vars=True).items())
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors.items())
    assert flags == {name: (tensor.requires_grad, tensor.stride()) for name, tensor in tensors.items()}
    assert modules == [(name, type(module), module.training) for name, module in model.named_modules()]
    assert [name for name, tensor in tensors.items() if tensor.grad is not None] == ["1.head.weight"]
    assert (model[1].head.weight.grad == 1).all()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert x.grad is None
    assert not x.requires_grad


@pytest.mark.parametrize(
    "surroundings",
    [torch.no_grad, torch.inference_mode, functools.partial(torch.inference_mode, False)],
)
@pytest.mark.same_inputs
def test_wherever_it_is_called(surroundings):
    model, x = randomised(Net()), images()
    with surroundings(), eval_mode(model):
        probe = x.clone()
        twin = optimized_copy(model, probe)
        assert not any(tensor.is_inference() for tensor in twin.state_dict().values())
    assert model.training
    assert norms_in(twin) == 0
    assert_alike(twin, model, x, gradient=1e-5)


@pytest.mark.same_inputs
def test_under_autocast():
    model, x = randomised(models.build("resnet18", num_classes=7, in_channels=3, width=8)), images(8, size=16)
    with torch.autocast("cpu", torch.bfloat16):
        twin = optimized_copy(model, x)
        assert norms_in(twin) == 0
        logits, expected = answers(twin, x)[0], answers(model, x)[0]
    assert logits.dtype == torch.bfloat16
    assert (logits - expected).abs().max() <= 0.05 * (expected.max() - expected.min())
    assert_alike(twin, model, x)
