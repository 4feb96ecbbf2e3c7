"""An audit that would not notice says nothing: made-up scores of many models, in which the truth is known."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from amun_ext.auditing.verdict import CANNOT_TELL, EXCESS, FORGOTTEN, NOT_FORGOTTEN, Verdict, excess, overall_verdict
from amun_ext.metrics.measures import Observation

IDS, TEST, AUDITS = 120, 400, 200


class Population:
    """Samples of which every model finds some harder than others, so that scores of two models go together."""

    def __init__(self, seed: int, ids: int = IDS) -> None:
        self.random = np.random.default_rng(seed)
        self.hardness = {name: self.random.normal(size=count) for name, count in (("forget", ids), ("test", TEST))}

    def model(self, memory: float | Mapping[int, float] = 0.0) -> Observation:
        """One whose scores of the forget samples are so much higher, all of them or those of some rows."""
        scores = {name: each + 0.5 * self.random.normal(size=len(each)) for name, each in self.hardness.items()}
        if isinstance(memory, Mapping):
            for row, more in memory.items():
                scores["forget"][row] += more
        else:
            scores["forget"] += memory
        return seen(scores)


def seen(scores: dict[str, np.ndarray]) -> Observation:
    nothing: dict[str, Tensor] = {name: torch.zeros(len(each)) for name, each in scores.items()}
    return Observation(logits=nothing, labels=nothing, attacks={"confidence": scores})


def verdict(audited: Observation, original: Observation | None, *retrained: Observation, no_op: str = "") -> Verdict:
    return overall_verdict(audited, original, retrained, {}, "", margin=5.0, no_op=no_op)[0]


@pytest.mark.parametrize("memory", [0.0, 0.05, 0.15, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("known", [True, False], ids=["original", "no original"])
def test_an_untouched_model_is_never_called_forgotten(memory: float, known: bool) -> None:
    """Of weak and strong memorisation; the second one has been trained once more, so that it is no copy."""
    for seed in range(AUDITS):
        people = Population(seed)
        original, again, retrained = people.model(memory), people.model(memory), people.model()
        answers = [verdict(original, original if known else None, retrained).answer]
        if not known:
            answers.append(verdict(again, None, retrained).answer)
        assert FORGOTTEN not in answers


def test_another_run_of_the_same_memory_is_seldom_called_forgotten() -> None:
    """An upper bound by the binomial law: with a true share of 5 % the count exceeds it once in 10^9."""
    most = int(binom.isf(1e-9, AUDITS, 0.05))
    for memory in (0.0, 0.1, 0.5, 1.0):
        people = [Population(seed) for seed in range(AUDITS)]
        answers = [verdict(each.model(memory), each.model(memory), each.model()).answer for each in people]
        assert answers.count(FORGOTTEN) <= most


def test_a_retrained_model_is_called_forgotten_if_the_audit_has_power() -> None:
    answers = []
    for seed in range(AUDITS):
        people = Population(seed, ids=600)
        answers.append(verdict(people.model(), people.model(2.0), people.model()).answer)
    assert answers.count(FORGOTTEN) > 0.8 * AUDITS  # 95 % of them, by the width of the interval


def test_reasons() -> None:
    people = Population(0, ids=600)
    retrained, original = people.model(), people.model(2.0)
    assert verdict(retrained, original, retrained).answer == FORGOTTEN
    for told, given in {
        "without the original model": (retrained, None, retrained),
        "the original model passes too": (retrained, retrained, retrained),
    }.items():
        found = verdict(*given)
        assert found.answer == CANNOT_TELL
        assert told in found.reason
        assert math.isnan(found.required_ids)  # more ids would not decide it
    assert verdict(retrained, original, retrained, no_op="it is the same").reason.endswith(", but it is the same")
    assert verdict(original, original, retrained).answer == NOT_FORGOTTEN


class TestExcess:
    def test_a_few_samples_that_stand_out_block_forgotten(self) -> None:
        """Thirty of 600, where chance allows for six: the area hardly moves."""
        people = Population(1, ids=600)
        original, retrained = people.model(2.0), people.model()
        remembered = people.model(dict.fromkeys(range(30), 20.0))
        found = verdict(remembered, original, retrained)
        assert found.answer == NOT_FORGOTTEN
        assert "forget samples look more like members" in found.reason

    def test_samples_that_also_stand_out_of_retrained_models_do_not_block(self) -> None:
        people = Population(2, ids=600)
        odd = dict.fromkeys(range(30), 20.0)
        assert "under confidence, 3" in excess(people.model(odd), [], "confidence")
        assert not excess(people.model(odd), [people.model(odd), people.model(odd)], "confidence")

    @pytest.mark.parametrize(("ours", "theirs", "blocked"), [(7, 1, True), (7, 0, True), (3, 1, False), (7, 6, False)])
    def test_seven_of_120_where_a_retrained_model_has_one(self, ours: int, theirs: int, blocked: bool) -> None:
        test = np.arange(3000.0)
        models = [
            seen({"forget": np.r_[np.full(above, 5000.0), np.full(120 - above, 1500.0)], "test": test})
            for above in (ours, theirs)
        ]
        assert bool(excess(models[0], models[1:], "confidence")) == blocked

    def test_excess_is_rarely_found_by_chance(self) -> None:
        """At most EXCESS of the audits, but for a chance of 10^-9."""
        count = 1000
        found = [bool(excess(Population(seed).model(), [], "confidence")) for seed in range(count)]
        assert sum(found) <= binom.isf(1e-9, count, EXCESS)

    @pytest.mark.parametrize(
        ("ids", "test", "seen_as"), [(1, 1, False), (1, 98, False), (1, 99, False), (200, 1, True)]
    )
    def test_excess_of_few_samples(self, ids: int, test: int, seen_as: bool) -> None:
        """All of the ids above all test samples: by chance once in (ids + test over ids)."""
        model = seen({"forget": np.full(ids, 1.0), "test": np.zeros(test)})
        assert bool(excess(model, [], "confidence")) == seen_as
