"""Search rules that are Python functions: what they see, and what may come back."""

import math

import pytest
import torch
from search_tools import Task, check_guarantees, may_run_out, plain_ddn, unit
from torch import Tensor

from amun_ext import InputError, find_min_adversarial
from amun_ext.search import Iterate
from amun_ext.search import find as search_module


class TestPythonRules:
    @may_run_out
    def test_a_few_lines_make_a_search(self, few: Task) -> None:
        def signs(step: Iterate) -> Tensor:
            return step.x + 0.01 * step.grad.sign() * (~step.adversarial).view(-1, 1, 1, 1)

        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method=signs, steps=60)
        assert result.found.float().mean() > 0.9
        check_guarantees(model, images, labels, result)
        ddn, own = (find_min_adversarial(model, images, labels, method=method) for method in ("ddn", plain_ddn))
        assert own.distance.median() <= 1.2 * ddn.distance.median()

    @may_run_out
    def test_what_a_rule_sees(self, task: Task, monkeypatch) -> None:
        """Among others its own numbers, sample by sample, although others leave the batch."""
        model, images, labels = task
        count, calls, kept = len(images), torch.zeros(len(images), dtype=torch.int32), torch.zeros(len(images))
        closest = torch.full((count,), math.inf)
        lives = torch.arange(count) % 9 + 2  # calls until a sample is ended

        def rule(step: Iterate) -> Tensor:
            sample = step.sample
            assert torch.equal(step.step, calls[sample])
            assert torch.equal(step.eps, kept[sample])
            assert torch.equal(step.inputs, images[sample])
            assert step.steps == 8
            logits = model(step.x)
            assert torch.equal(step.adversarial, logits.argmax(1) != labels[sample])
            others = logits.scatter(1, labels[sample][:, None], -math.inf).amax(1)
            left = logits.gather(1, labels[sample][:, None])[:, 0] - others
            torch.testing.assert_close(step.margin, left, rtol=1e-3, atol=1e-3)
            distance = (step.x - step.inputs).flatten(1).norm(dim=1).masked_fill(~step.adversarial, math.inf)
            closest[sample] = torch.minimum(closest[sample], distance)
            torch.testing.assert_close(step.best, closest[sample])
            calls[sample] += 1
            kept[sample] = torch.rand(len(sample))
            step.eps[:] = kept[sample]
            following = step.x + 0.05 * step.grad.sign()
            following[calls[sample] == lives[sample]] = torch.nan
            return following

        monkeypatch.setattr(search_module, "CHUNK_BYTES", 40 * images[0].nbytes)
        result = find_min_adversarial(model, images, labels, method=rule, steps=8, batch_size=16, optimize_model=False)
        assert torch.equal(calls, lives.clamp(max=8).int())
        assert torch.equal(result.grad_evals, calls)
        check_guarantees(model, images, labels, result)
        ended = lives < 8
        assert torch.equal(result.found[ended], closest[ended].isfinite())
        torch.testing.assert_close(result.distance[ended], closest[ended])

    def test_numbers_may_be_replaced_or_written(self, few: Task) -> None:
        model, images, labels = few
        seen = []

        def replacing(step: Iterate) -> Tensor:
            seen.append(float(step.eps.amax()))
            step.eps = step.eps + 1
            return step.x

        find_min_adversarial(model, images[:3], labels[:3], method=replacing, steps=4)
        assert seen == [0, 1, 2, 3]

    @may_run_out
    def test_changes_to_its_iterate_do_not_reach_the_search(self, few: Task) -> None:
        model, images, labels = few

        def careless(step: Iterate) -> Tensor:
            following = step.x + 0.05 * step.grad.sign()
            for part in (
                step.x,
                step.inputs,
                step.grad,
                step.margin,
                step.best,
                step.adversarial,
                step.sample,
                step.step,
            ):
                part.zero_()
            return following

        kept = images.clone()
        result = find_min_adversarial(model, images, labels, method=careless)
        assert torch.equal(images, kept)
        assert result.found.float().mean() > 0.9
        check_guarantees(model, images, labels, result)

    @may_run_out
    def test_iterates_are_clamped_to_the_box(self, few: Task) -> None:
        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method=lambda step: step.x + 1e6 * step.grad.sign())
        check_guarantees(model, images, labels, result)

    @may_run_out
    def test_a_row_that_is_not_finite_ends_its_sample(self, few: Task) -> None:
        model, images, labels = few

        def ending(step: Iterate) -> Tensor:
            following = step.x + 0.2 * unit(step.grad)
            following[(step.sample == 1) & (step.step == 2), 0, 0, 0] = torch.nan
            following[(step.sample == 2) & (step.step == 2)] = torch.inf
            return following

        result = find_min_adversarial(model, images[:4], labels[:4], method=ending, steps=12)
        assert result.grad_evals.tolist() == [12, 3, 3, 12]
        assert result.images.isfinite().all()

    @may_run_out
    def test_results_with_a_history(self, few: Task) -> None:
        model, images, labels = few
        weight = torch.ones((), requires_grad=True)
        result = find_min_adversarial(
            model, images, labels, method=lambda step: weight * step.x + 0.05 * step.grad.sign()
        )
        assert not result.images.requires_grad
        assert result.found.float().mean() > 0.9

    @pytest.mark.parametrize(
        ("answer", "got"),
        [
            (lambda step: step.x[:1], r"shape \(1, 1, 6, 6\)"),
            (lambda step: step.x.flatten(1), r"shape \(5, 36\)"),
            (lambda step: step.x[0], r"shape \(1, 6, 6\)"),
            (lambda _step: None, "NoneType"),
            (lambda step: (step.x, step.eps), "tuple"),
            (lambda step: step.x.numpy(), "ndarray"),
        ],
        ids=["rows", "flat", "one", "nothing", "tuple", "array"],
    )
    def test_another_shape_is_refused(self, few: Task, answer, got: str) -> None:
        model, images, labels = few
        model.train()
        with pytest.raises(InputError, match=f"what method returns must be the next iterates, .*, got {got}"):
            find_min_adversarial(model, images[:5], labels[:5], method=answer)
        assert model.training

    def test_its_errors_are_raised(self, few: Task) -> None:
        model, images, labels = few
        model.train()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        random = torch.get_rng_state()

        def failing(step: Iterate) -> Tensor:
            if step.step[0] == 3:
                raise ZeroDivisionError("mine")
            return step.x

        with pytest.raises(ZeroDivisionError, match="mine"):
            find_min_adversarial(model, images, labels, method=failing)
        assert all(module.training for module in model.modules())
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert torch.equal(random, torch.get_rng_state())

    def test_callable_objects(self, few: Task) -> None:
        class Rule:
            def __call__(self, step: Iterate) -> Tensor:
                return plain_ddn(step)

        model, images, labels = few
        own, plain = (find_min_adversarial(model, images, labels, method=method) for method in (Rule(), plain_ddn))
        assert torch.equal(own.images, plain.images)
