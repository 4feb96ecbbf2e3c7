"""The prepared twin: as the model up to rounding, cheaper where that is sound, and the model left alone."""

import copy
import functools
import random
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amun_ext import models
from amun_ext.models.optimized_copy import optimized_copy
from amun_ext.models.state import eval_mode

NORMS = nn.modules.batchnorm._BatchNorm
CHANNELS = 6


def randomised(model):
    """The model, with a BatchNorm that a fold must get right: no statistic or weight is 0 or 1."""
    for module in model.modules():
        if isinstance(module, NORMS):
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    return model


def images(count=4, channels=3, size=8, **where):
    return torch.rand(count, channels, size, size, **where)


def norms_in(model):
    return sum(isinstance(module, NORMS) for module in model.modules())


def answers(model, x):
    """Logits, and the gradient of a random mixture of them: the same one for each model of a test."""
    with eval_mode(model), torch.enable_grad():
        x = x.clone().requires_grad_()
        logits = model(x.clone())
        mixture = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits)
        (gradient,) = torch.autograd.grad(logits, x, mixture)
    return logits.detach(), gradient


def assert_alike(twin, model, x, logits=1e-5, gradient=0.02):
    """`gradient`: ReLUs on the brink may flip by rounding."""
    one, two = answers(twin, x), answers(model, x)
    assert (one[0] - two[0]).abs().max() <= logits * (two[0].max() - two[0].min())
    assert (one[1] - two[1]).norm() <= gradient * two[1].norm()


class Net(nn.Module):
    """Two convolutions with BatchNorm each; the tests add what must not be folded, and the second pair still can be.

    Tanh rather than ReLU: nothing flips by rounding, so gradients are held to a tight bound.
    """

    def __init__(self, channels=3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, CHANNELS, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(CHANNELS)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(CHANNELS)
        self.head = nn.Linear(CHANNELS, 5)

    def first(self, x):
        return self.bn1(self.conv1(x))

    def classify(self, x):
        x = torch.tanh(x)
        x = torch.tanh(self.bn2(self.conv2(x)))
        return self.head(x.mean((2, 3)))

    def forward(self, x):
        return self.classify(self.first(x))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_no_norm_is_left_and_the_answers_are_the_same(name, channels, device, monkeypatch):
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
    model, x = randomised(Net()), images()
    twin = optimized_copy(model, x)
    assert norms_in(twin) == 0
    assert_alike(twin, model, x, gradient=1e-5)


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
    model, x = randomised(nn.Sequential(*layers, nn.Flatten(), nn.Linear(CHANNELS, 5))), images()
    twin = optimized_copy(model, x)
    assert norms_in(twin) == 0
    assert_alike(twin, model, x, gradient=1e-5)


class TestWhatMustNotBeFolded:
    """Where the second pair can be folded and the first cannot, exactly one norm is left."""

    def check(self, model, left):
        model, x = randomised(model), images()
        twin = optimized_copy(model, x)
        assert twin is not model
        assert norms_in(twin) == left
        assert_alike(twin, model, x, gradient=1e-5)

    def test_output_with_two_users(self):
        class Residual(Net):
            def first(self, x):
                x = self.conv1(x)
                return self.bn1(x) + x

        self.check(Residual(), left=1)

    def test_convolution_used_twice(self):
        class Twice(Net):
            def first(self, x):
                return self.bn1(self.conv1(x)) + self.conv1(x.flip(2))

        self.check(Twice(), left=1)

    def test_norm_used_twice(self):
        class Twice(Net):
            def first(self, x):
                return self.bn1(self.conv1(x)) + self.bn1(x.repeat(1, 2, 1, 1))

        self.check(Twice(), left=1)

    def test_norm_behind_another_layer(self):
        class Behind(Net):
            def first(self, x):
                return self.bn1(torch.relu(self.conv1(x)))

        self.check(Behind(), left=1)

    def test_norm_without_statistics(self):
        model = Net()
        model.bn1 = nn.BatchNorm2d(CHANNELS, track_running_stats=False)
        self.check(model, left=1)

    def test_linear_norm_without_weights(self):
        model = Net()
        model.head = nn.Sequential(nn.Linear(CHANNELS, 5), nn.BatchNorm1d(5, affine=False))
        self.check(model, left=1)

    def test_functional_norm(self):
        class Functional(Net):
            def first(self, x):
                return F.batch_norm(self.conv1(x), self.bn1.running_mean, self.bn1.running_var, self.bn1.weight)

        self.check(Functional(), left=1)

    def test_norm_of_another_dimension(self):
        # [N, L, C] with L = C: a linear layer's classes are last, the channels of BatchNorm1d second.
        tokens = nn.Sequential(nn.Flatten(2), nn.Linear(64, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Flatten())
        self.check(nn.Sequential(tokens, nn.Linear(9, 5)), left=1)

    def test_weights_used_elsewhere(self):
        class Elsewhere(Net):
            def first(self, x):
                return self.bn1(self.conv1(x)) + F.conv2d(x, self.conv1.weight, padding=1)

        self.check(Elsewhere(), left=2)

    def test_parametrized_layer(self):
        model = Net()
        nn.utils.parametrizations.weight_norm(model.conv1)
        self.check(model, left=1)

    def test_subclasses(self):
        class Doubling(nn.Conv2d):
            def forward(self, x):
                return 2 * super().forward(x)

        class Shifting(nn.BatchNorm2d):
            def forward(self, x):
                return super().forward(x) + 1

        model = Net()
        model.conv1, model.bn2 = Doubling(3, CHANNELS, 3), Shifting(CHANNELS)
        self.check(model, left=2)

    def test_control_flow_by_data(self):
        class Branching(Net):
            def forward(self, x):
                return self.classify(self.first(x) if x.mean() > 0.6 else self.conv1(x))

        self.check(model := Branching(), left=2)
        twin, bright = optimized_copy(model, images()), images().clamp_min(0.8)
        assert_alike(twin, model, bright)

    @pytest.mark.parametrize("use", ["detach", "clone", "isnan", "__getitem__"])
    def test_what_a_layer_returns_is_used_twice(self, use):
        class Twice(Net):
            def first(self, x):
                h = self.conv1(x)
                part = h[0] if use == "__getitem__" else getattr(h, use)()
                return self.bn1(h) + 0 * part.sum()

        self.check(Twice(), left=1)

    def test_no_thread_is_disturbed(self):
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

    def test_norm_that_stays_in_training(self):
        class Stays(nn.BatchNorm2d):
            def train(self, mode=True):
                return super().train(True)

        class Trains(Net):
            def train(self, mode=True):
                super().train(mode)
                self.bn1.train()
                return self

        self.check(Trains(), left=1)
        model = Net()
        model.bn1 = Stays(CHANNELS)
        self.check(model, left=1)  # a class of the user's own, whose forward may be anything

    def test_a_layer_of_two_names(self):
        class Aliased(Net):
            def __init__(self):
                super().__init__()
                self.also_conv1, self.layers = self.conv1, [self.conv1]

            def first(self, x):
                return self.bn1(self.also_conv1(x)) if len(self.layers) == 1 else x

        self.check(Aliased(), left=0)

    def test_a_norm_of_two_names(self):
        class Aliased(Net):
            def __init__(self):
                super().__init__()
                self.also_bn1 = self.bn1

            def first(self, x):
                return self.also_bn1(self.conv1(x))

        self.check(Aliased(), left=2)

    def test_shared_weights(self):
        model = Net(channels=CHANNELS)
        model.conv2.weight = model.conv1.weight
        model = randomised(nn.Sequential(nn.Conv2d(3, CHANNELS, 1), model))
        self.check(model, left=0)


class TestTheModelsOwnForwardRuns:
    def test_backward_of_its_own(self):
        class Tripled(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 1.0

            @staticmethod
            def backward(ctx, grad):
                return 3 * grad

        class Own(Net):
            def first(self, x):
                return Tripled.apply(super().first(x))

        model, x = randomised(Own()), images()
        twin = optimized_copy(model, x)
        assert norms_in(twin) == 0
        assert_alike(twin, model, x, gradient=1e-5)

    def test_no_grad_inside(self):
        class Blocked(Net):
            def first(self, x):
                with torch.no_grad():
                    blocked = super().first(x)
                return blocked + x.repeat(1, 2, 1, 1)

        model, x = randomised(Blocked()), images()
        twin = optimized_copy(model, x)
        assert norms_in(twin) == 0
        assert_alike(twin, model, x, gradient=1e-5)

    def test_noise_in_eval_mode(self):
        class Noisy(Net):
            def first(self, x):
                return super().first(x + torch.randn(1) + torch.rand_like(x))

        model, x = randomised(Noisy()), images()
        twin = optimized_copy(model, x)
        assert_alike(twin, model, x)  # from the same random state
        assert not torch.equal(twin(x), twin(x))

    def test_noise_that_cannot_be_repeated(self):
        class Noisy(Net):
            def first(self, x):
                return super().first(x + random.random())

        assert optimized_copy(model := randomised(Noisy()), images()) is model

    def test_buffers_that_forward_changes(self):
        class Counting(Net):
            def __init__(self):
                super().__init__()
                self.register_buffer("calls", torch.ones(()))

            def first(self, x):
                self.calls += 1
                return super().first(x * self.calls)

        model, x = randomised(Counting()).eval(), images()
        twin = optimized_copy(model, x)
        assert norms_in(twin) == 0
        assert model.calls == 1
        for _ in range(3):
            torch.testing.assert_close(twin(x), model(x))
        assert twin.calls == model.calls == 4

    def test_options_with_defaults(self):
        class Options(Net):
            def forward(self, x, mask=None, return_features=False):
                features = self.first(x if mask is None else x * mask)
                return features if return_features else self.classify(features)

        model, x = randomised(Options()), images()
        assert norms_in(optimized_copy(model, x)) == 0
        assert_alike(optimized_copy(model, x), model, x)

    def test_in_place_on_the_input(self):
        model, x = randomised(nn.Sequential(nn.ReLU(inplace=True), Net())), images()
        before = x.clone()
        assert norms_in(optimized_copy(model, x)) == 0
        assert torch.equal(x, before)

    def test_dropout(self):
        model, x = randomised(nn.Sequential(nn.Dropout(), Net())).train(), images()
        twin = optimized_copy(model, x)
        assert norms_in(twin) == 0
        assert torch.equal(twin(x), twin(x))

    def test_layers_built_in_the_first_call(self):
        class Late(Net):
            def __init__(self):
                super().__init__()
                self.head = None

            def classify(self, x):
                if self.head is None:
                    self.head = nn.Linear(CHANNELS, 5)
                return super().classify(x)

        model, x = randomised(Late()), images()
        twin = optimized_copy(model, x)
        assert_alike(twin, model, x)
        assert not any(parameter.requires_grad for parameter in twin.parameters())


class TestChannelsLast:
    def is_last(self, model):
        return model.conv2.weight.is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
    def test_input_of_either_order(self, order):
        model, x = randomised(Net()), images().to(memory_format=order)
        twin = optimized_copy(model, x)
        assert self.is_last(twin)
        assert not self.is_last(model)
        assert_alike(twin, model, x, gradient=1e-5)

    def test_a_view_that_needs_the_usual_order(self):
        class Viewing(Net):
            def classify(self, x):
                return self.head(
                    torch.tanh(self.bn2(self.conv2(x))).view(-1, CHANNELS * 64).unflatten(1, (CHANNELS, 64)).mean(2)
                )

        model, x = randomised(Viewing()), images()
        twin = optimized_copy(model, x)
        assert not self.is_last(twin)
        assert norms_in(twin) == 0
        assert_alike(twin, model, x, gradient=1e-5)

    @pytest.mark.parametrize(
        "usual", [lambda x: x.view(len(x), -1).view_as(x), lambda x: x.as_strided(x.shape, (CHANNELS * 64, 64, 8, 1))]
    )
    def test_a_backward_pass_that_needs_the_usual_order(self, usual):
        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 1.0

            @staticmethod
            def backward(ctx, grad):
                return usual(grad)

        class Own(Net):
            def classify(self, x):
                return super().classify(Function.apply(x))

        model, x = randomised(Own()), images()
        twin = optimized_copy(model, x)
        assert not self.is_last(twin)
        assert_alike(twin, model, x, gradient=1e-5)

    def test_memory_read_as_it_lies(self):
        class Strided(Net):
            def first(self, x):
                x = super().first(x)
                return x.as_strided(x.shape, (CHANNELS * 64, 64, 8, 1))

        model, x = randomised(Strided()), images()
        twin = optimized_copy(model, x)
        assert not self.is_last(twin)
        assert_alike(twin, model, x, gradient=1e-5)

    @pytest.mark.parametrize("reshape", [torch.Tensor.view, torch.Tensor.reshape])
    def test_alone_where_nothing_folds(self, reshape):
        class Branching(Net):
            def first(self, x):
                x = super().first(x if x.mean() > 0 else -x)
                return reshape(reshape(x, (len(x), -1)), x.shape)

        model, x = randomised(Branching()), images()
        twin = optimized_copy(model, x)
        assert twin is not model
        assert norms_in(twin) == 2
        assert self.is_last(twin) == (reshape is torch.Tensor.reshape)
        assert not any(parameter.requires_grad for parameter in twin.parameters())


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


def test_the_model_itself_where_there_is_nothing_to_compare():
    assert optimized_copy(model := Net(), images(0)) is model


@pytest.mark.parametrize("autocast", [False, True])
def test_the_model_itself_where_no_twin_answers_alike(autocast):
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
def test_wherever_it_is_called(surroundings):
    model, x = randomised(Net()), images()
    with surroundings(), eval_mode(model):
        probe = x.clone()
        twin = optimized_copy(model, probe)
        assert not any(tensor.is_inference() for tensor in twin.state_dict().values())
    assert model.training
    assert norms_in(twin) == 0
    assert_alike(twin, model, x, gradient=1e-5)


def test_under_autocast():
    model, x = randomised(models.build("resnet18", num_classes=7, in_channels=3, width=8)), images(8, size=16)
    with torch.autocast("cpu", torch.bfloat16):
        twin = optimized_copy(model, x)
        assert norms_in(twin) == 0
        logits, expected = answers(twin, x)[0], answers(model, x)[0]
    assert logits.dtype == torch.bfloat16
    assert (logits - expected).abs().max() <= 0.05 * (expected.max() - expected.min())
    assert_alike(twin, model, x)
