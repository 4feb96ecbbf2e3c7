"""The copy runs the model's own forward pass, whatever that does, and in channels-last order where it may."""

import random

import pytest
import torch
from optimized_copy_tools import CHANNELS, Net, assert_alike, check_copy, images, norms_in, randomised
from torch import nn

from amun_ext.models.optimized_copy import optimized_copy

pytestmark = pytest.mark.same_inputs  # rounding is held against a threshold


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

        check_copy(Own())

    def test_no_grad_inside(self):
        class Blocked(Net):
            def first(self, x):
                with torch.no_grad():
                    blocked = super().first(x)
                return blocked + x.repeat(1, 2, 1, 1)

        check_copy(Blocked())

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

        check_copy(Options())

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

        assert not self.is_last(check_copy(Viewing()))

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

        assert not self.is_last(check_copy(Own()))

    def test_a_model_that_reads_memory_in_order(self):
        class Strided(Net):
            def first(self, x):
                x = super().first(x)
                return x.as_strided(x.shape, (CHANNELS * 64, 64, 8, 1))

        assert not self.is_last(check_copy(Strided()))

    @pytest.mark.parametrize("reshape", [torch.Tensor.view, torch.Tensor.reshape])
    def test_is_used_alone_if_nothing_folds(self, reshape):
        class Branching(Net):
            def first(self, x):
                x = super().first(x if x.mean() > 0 else -x)
                return reshape(reshape(x, (len(x), -1)), x.shape)

        twin = check_copy(Branching(), norms_left=2)
        assert self.is_last(twin) == (reshape is torch.Tensor.reshape)
        assert not any(parameter.requires_grad for parameter in twin.parameters())
