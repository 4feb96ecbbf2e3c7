"""find_min_adversarial on models as users have them, and on hostile ones."""

import warnings
from collections.abc import Callable

import pytest
import torch
from search_tools import (
    ALL,
    Around,
    Linear,
    Restless,
    Scaled,
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
    def test_buffers_that_change_in_eval_mode_are_put_back(self, method, optimize_model: bool) -> None:
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
    def test_a_failing_model_is_put_back_too(self, method) -> None:
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


class TestHostileModels:
    @every_method
    @pytest.mark.parametrize("kind", ["constant", "detached", "zero"])
    def test_no_gradient_ends_unfound(self, method, kind: str) -> None:
        class Flat(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.logits = nn.Parameter(torch.tensor([2.0, 1.0]))

            def forward(self, x: Tensor) -> Tensor:
                logits = self.logits.expand(len(x), 2)
                if kind == "detached":
                    return logits.detach()
                return logits + 0 * x.sum(1, keepdim=True) if kind == "zero" else logits

        x = torch.rand(5, 3)
        with pytest.warns(RuntimeWarning, match="5 of 5 samples were not found for want of a gradient"):
            result = find_min_adversarial(
                Flat(), x, torch.zeros(5, dtype=torch.long), method=method, refine=2, quantize=255
            )
        assert not result.found.any()
        assert torch.equal(result.images, x)
        assert result.distance.isinf().all()
        assert result.eps.isfinite().all()
        assert len(result) == 0

    @every_method
    @pytest.mark.parametrize("what", ["logits", "one logit", "gradient", "infinite gradient"])
    @pytest.mark.same_inputs
    def test_nan_stays_with_its_sample(self, method, what: str) -> None:
        class Broken(Linear):
            def forward(self, x: Tensor) -> Tensor:
                bad, logits = x[:, :1] == 0.25, super().forward(x)
                if what == "logits":
                    return logits + torch.where(bad, torch.nan, 0.0)
                if what == "one logit":
                    return logits + torch.where(bad, torch.tensor([0.0, 0.0, torch.nan]), 0.0)
                # sqrt has an infinite slope at 0, and 0 * inf is NaN: finite logits, NaN gradient
                factor = 0 if what == "gradient" else 1
                root = torch.sqrt(torch.where(bad, x[:, :1] - 0.25, 1.0)) - 1
                return logits + factor * root * torch.tensor([0, 0, 1.0])

        model, x = Broken(3, 4), torch.rand(6, 4) * 0.1 + 0.5
        labels = model(x).argmax(1)
        clean = find_min_adversarial(model, x, labels, method=method)
        x[2, 0] = 0.25
        labels[2] = model(x)[2].argmax()  # or it might be misclassified at once, before any gradient
        others = torch.arange(6) != 2
        if method == "ffgsm":  # starts again a little beside the spot
            result = find_min_adversarial(model, x, labels, method=method)
        else:
            with pytest.warns(RuntimeWarning, match="1 of 6 samples"):
                result = find_min_adversarial(model, x, labels, method=method)
            assert not result.found[2]
            assert torch.equal(result.images[2], x[2])
        assert not result.images.isnan().any()
        assert torch.equal(result.found[others], clean.found[others])
        torch.testing.assert_close(result.distance[others], clean.distance[others])

    @every_method
    @may_run_out
    def test_a_model_that_is_deaf_to_nan(self, method) -> None:
        """Nothing but numbers comes out, also where a step as long as can be meets an element without a gradient."""

        class Deaf(Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(torch.nan_to_num(x))

        model, x = Deaf(3, 6), torch.rand(20, 6)
        with torch.no_grad():
            model.weight[:, 2] = 0
        labels = model(x).argmax(1)
        options = {"eps_growth": 1e300, "eps_init": 1e-6} if method in ("pgd", "ffgsm") else {}
        result = find_min_adversarial(model, x, labels, method=method, **options)
        check_guarantees(model, x, labels, result)

    @every_method
    def test_all_logits_nan(self, method) -> None:
        class Nan(Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) * torch.nan

        with pytest.warns(RuntimeWarning, match="5 of 5 samples"):
            result = find_min_adversarial(
                Nan(3, 4), torch.rand(5, 4), torch.zeros(5, dtype=torch.long), method=method, refine=2
            )
        assert not result.found.any()
        assert result.images.isfinite().all()

    @may_run_out
    @every_method
    @pytest.mark.same_inputs
    def test_infinite_logits(self, method) -> None:
        """A class that is masked out, and one that is always certain."""

        class Masked(Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x).index_fill(1, torch.tensor([2]), -torch.inf)

        class Certain(Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x).index_fill(1, torch.tensor([0]), torch.inf)

        x = torch.rand(10, 6)
        model = Masked(4, 6)
        labels = model(x).argmax(1)
        result = find_min_adversarial(model, x, labels, method=method)
        assert result.found.all()
        assert (result.labels != 2).all()
        labels = torch.arange(10) % 2
        result = find_min_adversarial(Certain(3, 6), x, labels, method=method, steps=5)
        assert torch.equal(result.found, labels == 1)
        assert torch.equal(result.images, x)

    @may_run_out
    @every_method
    @pytest.mark.same_inputs
    def test_gradients_that_vanish_or_explode(self, method) -> None:
        """A gradient norm below 1e-22 or above 1e19 counts as none in float32; in between the scale does not matter."""
        model, x = Linear(3, 6), torch.rand(10, 6)
        labels = model(x).argmax(1)
        plain = find_min_adversarial(model, x, labels, method=method)
        for scale in (1e-15, 1e15):
            scaled = find_min_adversarial(Scaled(model, scale), x, labels, method=method)
            assert scaled.found.all()
            if method != "ffgsm":  # cross-entropy's one gradient changes with it
                assert scaled.distance.median() <= 2 * plain.distance.median()
        for scale in (1e-30, 1e30):
            scaled = find_min_adversarial(Scaled(model, scale), x, labels, method=method, steps=5)
            assert scaled.images.isfinite().all()
            assert not scaled.distance.isnan().any()

    @may_run_out
    @every_method
    def test_answers_that_change_do_not_pass_as_found(self, method) -> None:
        torch.manual_seed(0)
        model, x = Restless(3, 4), torch.rand(200, 4)
        result = find_min_adversarial(model, x, torch.zeros(200, dtype=torch.long), method=method)
        assert 0 < result.found.sum() < 200
        assert (result.labels[result.found] != 0).all()

    def test_a_clean_input_that_falls_at_the_second_look_ends(self) -> None:
        """Misclassified in a batch and right alone: the search must go on from the first radius, and end."""

        class Moody(Linear):
            def forward(self, x: Tensor) -> Tensor:
                logits = super().forward(x)
                return logits.flip(1) if x.requires_grad and len(x) == 1 and not self.settled() else logits

            calls = 0

            def settled(self) -> bool:
                Moody.calls += 1
                return Moody.calls > 1

        model, x = Moody(2, 6), torch.rand(1, 6)
        with torch.no_grad():
            labels = Linear.forward(model, x).argmax(1)
        for method in ALL.values():
            Moody.calls = 0
            result = find_min_adversarial(model, x, labels, method=method)
            assert result.found.all()
            assert result.distance > 0
            assert result.eps > 0

    def test_eps_max_ends_the_search(self) -> None:
        model, x = Linear(2, 3), torch.rand(10, 3)
        with torch.no_grad():
            model.bias.copy_(torch.tensor([50.0, 0.0]))
        result = find_min_adversarial(
            model, x, torch.zeros(10, dtype=torch.long), eps_init=0.1, eps_max=0.35, steps=5, bounds=(-100.0, 100.0)
        )
        assert not result.found.any()
        assert (result.grad_evals == 3 * 5 + 1).all()  # radii 0.1, 0.2 and 0.35
        torch.testing.assert_close(result.eps, torch.full((10,), 0.35))

    @may_run_out
    @every_method
    @pytest.mark.parametrize("when", ["nothing is found", "all is misclassified"])
    def test_no_batch_is_empty(self, method, when: str) -> None:
        class Counting(Linear):
            def forward(self, x: Tensor) -> Tensor:
                assert len(x) > 0
                return super().forward(x.view(x.size(0), -1)) + torch.tensor([0.0, 50.0, 0.0])

        x = torch.rand(10, 2, 3)
        labels = torch.full((10,), 1 if when == "nothing is found" else 0)
        result = find_min_adversarial(
            Counting(3, 6), x, labels, method=method, refine=2, quantize=255, precision="bfloat16", eps_max=1.0
        )
        assert result.found.all() == (when != "nothing is found")
