"""find_min_adversarial on models as users have them, which it leaves as they were."""

import warnings
from collections.abc import Callable

import pytest
import torch
from search_tools import (
    Around,
    Linear,
    Task,
    WithAScalarPart,
    check_alike,
    check_guarantees,
    every_method,
    may_run_out,
    small_net,
)
from torch import Tensor, nn

from amun_ext import find_min_adversarial


class TestTheModelIsLeftAsItWas:
    @may_run_out
    @every_method
    def test_modes_buffers_gradients_and_random_state(self, method) -> None:
        model = nn.Sequential(small_net(), nn.Dropout(0.5)).train()
        model[0][1].eval()  # a frozen BatchNorm
        model[0][0].weight.requires_grad_(False)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        images = torch.rand(20, 1, 6, 6)
        random = torch.get_rng_state()
        find_min_adversarial(
            model,
            images,
            torch.zeros(20, dtype=torch.long),
            method=method,
            refine=2,
            quantize=255,
            precision="bfloat16",
        )
        assert torch.equal(random, torch.get_rng_state())
        assert modes == [module.training for module in model.modules()]
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert [parameter.requires_grad for parameter in model.parameters()] == [False] + [True] * 5

    @every_method
    def test_dropout_and_batchnorm_are_off_in_the_search(self, task: Task, method) -> None:
        model, images, labels = task
        plain = find_min_adversarial(model, images, labels, method=method)
        noisy = nn.Sequential(nn.Dropout(0.5), model).train()
        check_alike(plain, find_min_adversarial(noisy, images, labels, method=method))

    @may_run_out
    @every_method
    @pytest.mark.parametrize("optimize_model", [True, False])
    def test_buffers_that_change_in_eval_mode_are_restored(self, method, optimize_model: bool) -> None:
        class Counting(Linear):
            def __init__(self) -> None:
                super().__init__(3, 5)
                self.register_buffer("calls", torch.zeros(()))
                self.register_buffer("replaced", torch.zeros(()))
                self.register_buffer("still", torch.ones(()))

            def forward(self, x: Tensor) -> Tensor:
                self.calls += 1
                self.replaced = self.replaced + 1
                return super().forward(x)

        model = Counting()
        find_min_adversarial(
            model,
            torch.rand(4, 5),
            torch.zeros(4, dtype=torch.long),
            method=method,
            eps_max=1.0,
            optimize_model=optimize_model,
        )
        assert model.calls == 0
        assert model.replaced == 0
        assert model.still._version == 0

    @may_run_out
    def test_a_train_method_of_the_models_own_is_called(self) -> None:
        class Switching(Linear):
            def train(self, mode: bool = True) -> "Switching":
                self.mode = mode
                return super().train(mode)

        model = Switching(3, 5).train()
        find_min_adversarial(model, torch.rand(4, 5), torch.zeros(4, dtype=torch.long), eps_max=1.0)
        assert model.mode is True

    @every_method
    def test_a_failing_model_is_restored_too(self, method) -> None:
        class Failing(Linear):
            def forward(self, x: Tensor) -> Tensor:
                if len(x) > 2:
                    raise RuntimeError("out of memory")
                return super().forward(x)

        model, x = Failing(3, 5).train(), torch.rand(4, 5)
        random = torch.get_rng_state()
        with pytest.raises(RuntimeError, match="out of memory"):
            find_min_adversarial(model, x, torch.zeros(4, dtype=torch.long), method=method)
        assert model.training
        assert torch.equal(random, torch.get_rng_state())
        assert not model._forward_hooks

    @every_method
    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_callers_without_gradients(self, few: Task, method, context) -> None:
        model, images, labels = few
        with context():
            result = find_min_adversarial(model, images.clone(), labels.clone(), method=method, refine=2)
        assert result.found.all()
        assert not result.images.requires_grad
        check_guarantees(model, images, labels, result)

    @every_method
    def test_inputs_that_require_grad(self, few: Task, method) -> None:
        model, images, labels = few
        images = images.requires_grad_()
        result = find_min_adversarial(model, images, labels, method=method)
        assert result.found.all()
        assert not result.images.requires_grad
        assert images.grad is None

    @may_run_out
    @every_method
    def test_callers_autocast(self, few: Task, method) -> None:
        model, images, labels = few
        with torch.autocast("cpu", torch.bfloat16):
            right = model(images).argmax(1) == labels
            images, labels = images[right], labels[right]
            result = find_min_adversarial(model, images, labels, method=method, refine=2)
            predicted = model(result.images).argmax(1)
        assert result.found.float().mean() > (0.5 if method == "deepfool" else 0.9)  # stuck at ties of coarse logits
        assert torch.equal(predicted[result.found], result.labels[result.found])
        assert (result.labels != labels)[result.found].all()


def tied() -> nn.Sequential:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.Tanh(), nn.Linear(36, 36), nn.Tanh(), nn.Linear(36, 4))
    net[3].weight = net[1].weight
    return net


class InPlace(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.sub_(0.25).add_(0.25))


class BehindAutograd(Around):
    def forward(self, x: Tensor) -> Tensor:
        x.data.clamp_(0.1, 0.9)  # of which autograd knows nothing
        return self.inner(x)


class ByView(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.reshape(x.shape).view(x.size(0), -1).view(x.shape))  # fails for an empty batch


class OfItsBatch(Around):
    def forward(self, x: Tensor) -> Tensor:
        if not 0 < len(x) <= 16:
            raise RuntimeError(f"a batch of {len(x)}")
        return self.inner(x) + 0 * len(x)


class ChannelsLast(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).contiguous())


class Double(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).double()


class StridedLogits(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).repeat_interleave(2, dim=1)[:, ::2]


class CalledOtherwise(Around):
    def __call__(self, x: Tensor) -> Tensor:
        return self.inner(x)


def hooked(inner: nn.Module) -> nn.Module:
    model = nn.Sequential(inner)
    model.register_forward_pre_hook(lambda _module, args: (args[0] + 0,))
    model.register_forward_hook(lambda _module, _args, output: output * 1)
    return model


AROUND: dict[str, Callable[[nn.Module], nn.Module]] = {
    "wrapped": nn.Sequential,
    "data parallel": nn.DataParallel,
    "hooked": hooked,
    "in place": InPlace,
    "by view": ByView,
    "of its batch": OfItsBatch,
    "channels_last": ChannelsLast,
    "double logits": Double,
    "strided logits": StridedLogits,
    "a scalar part": WithAScalarPart,
    "called otherwise": CalledOtherwise,
}


@every_method
class TestModelsAsUsersHaveThem:
    @pytest.mark.parametrize("around", AROUND.values(), ids=AROUND.keys())
    def test_finds_the_same(self, few: Task, method, around) -> None:
        inner, images, labels = few
        kept = images.clone()
        options = {"method": method, "batch_size": 16, "refine": 3}
        model = around(inner)
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
        result = find_min_adversarial(model, images, labels, **options)
        assert torch.equal(images, kept)
        assert result.found.all()
        check_guarantees(inner, images, labels, result)
        check_alike(find_min_adversarial(inner, images, labels, **options), result)
        assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks

    @may_run_out
    def test_changes_behind_autograd(self, few: Task, method) -> None:
        inner, images, labels = few
        model = BehindAutograd(inner)
        labels = model(images.clone()).argmax(1)
        kept = images.clone()
        result = find_min_adversarial(model, images, labels, method=method)
        assert torch.equal(images, kept)
        assert result.found.float().mean() > 0.5
        check_guarantees(model, images, labels, result)

    @may_run_out
    def test_normalising_in_place(self, method) -> None:
        class Normalising(Linear):
            def forward(self, x: Tensor) -> Tensor:
                x = x.data.sub_(0.5) if not x.requires_grad else x.sub_(0.5)
                return super().forward(x)

        model, x = Normalising(3, 5), torch.rand(12, 5)
        kept, labels = x.clone(), model(x.clone()).argmax(1)
        result = find_min_adversarial(model, x, labels, method=method, eps_max=1.0)
        assert torch.equal(x, kept)
        check_guarantees(model, x, labels, result)

    @may_run_out
    @pytest.mark.same_inputs
    def test_shared_weights(self, method) -> None:
        model, x = tied(), torch.rand(20, 1, 6, 6)
        labels = model(x).argmax(1)
        result = find_min_adversarial(model, x, labels, method=method)
        assert model[3].weight is model[1].weight
        assert result.found.float().mean() > 0.5
        check_guarantees(model, x, labels, result)

    @may_run_out
    @pytest.mark.same_inputs
    def test_gradients_of_stride_0(self, method) -> None:
        """Of a mean it is one number for all elements."""

        class Mean(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                mean = x.mean((1, 2, 3))
                return torch.stack([mean, 0.5 - 0 * mean], 1)

        x = torch.rand(10, 1, 6, 6)
        labels = Mean()(x).argmax(1)
        result = find_min_adversarial(Mean(), x, labels, method=method, refine=10)
        assert result.found.all()
        check_guarantees(Mean(), x, labels, result)
        truth = (x.mean((1, 2, 3)) - 0.5).abs() * 6
        inside = (x.amin((1, 2, 3)) > 0.15) & (x.amax((1, 2, 3)) < 0.85)  # elsewhere the box may be in the way
        assert (result.distance <= truth * 1.02 + 1e-5)[inside].all()

    @may_run_out
    def test_answers_that_depend_on_the_batch(self, few: Task, method) -> None:
        """What is found can hold for one size of batch only: the search ends, and all it returns was wrong in one."""

        class Moody(Around):
            def forward(self, x: Tensor) -> Tensor:
                return self.inner(x) + (0.2 if len(x) % 2 else -0.2) * torch.tensor([1.0, -1.0, 1.0, -1.0])

        inner, images, labels = few
        model = Moody(inner)
        result = find_min_adversarial(model, images, labels, method=method, batch_size=7, refine=2, quantize=255)
        assert (result.labels != labels)[result.found].all()
        assert torch.equal(result.images[~result.found], images[~result.found])


@pytest.mark.parametrize("method", ["pgd", "ddn"])
def test_compiled_models(task: Task, method: str) -> None:
    inner, images, labels = task
    images, labels = images[:10], labels[:10]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.compile(inner, backend="eager")
        result = find_min_adversarial(model, images, labels, method=method, batch_size=5)
    check_guarantees(inner, images, labels, result)
    check_alike(find_min_adversarial(inner, images, labels, method=method, batch_size=5), result)
