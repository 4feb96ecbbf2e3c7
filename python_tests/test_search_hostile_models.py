"""find_min_adversarial on models without a gradient, with NaN, or whose answers change."""

import pytest
import torch
from search_tools import ALL, Linear, Restless, Scaled, check_guarantees, every_method, may_run_out
from torch import Tensor, nn

from amun_ext import find_min_adversarial


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
        with pytest.warns(RuntimeWarning, match="5 of 5 samples have no example"):
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
    def test_a_model_that_ignores_nan(self, method) -> None:
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
    @pytest.mark.same_inputs
    def test_random_logits_are_not_accepted_as_found(self, method) -> None:
        model, x = Restless(3, 4), torch.rand(200, 4)
        result = find_min_adversarial(model, x, torch.zeros(200, dtype=torch.long), method=method)
        assert 0 < result.found.sum() < 200
        assert (result.labels[result.found] != 0).all()

    def test_an_input_that_is_misclassified_only_at_the_second_evaluation(self) -> None:
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
