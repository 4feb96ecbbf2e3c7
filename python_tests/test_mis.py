"""MIS against its parts written out, and on made-up models where the answer is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score
from sklearn.svm import SVC

from amun_ext import InputError
from amun_ext.metrics import log_odds, mis, mis_threshold
from amun_ext.metrics.mis import FEATURES, entropy, m_entropy


def answers(count, sure, classes=4):
    """Logits of a model that favours the true class by `sure`, and labels."""
    labels = torch.randint(classes, (count,))
    return torch.randn(count, classes) + sure * torch.nn.functional.one_hot(labels, classes), labels


def two_classes(scores):
    """Answers whose log-odds are `scores`."""
    logits = torch.as_tensor(scores, dtype=torch.float64)
    return torch.stack([logits, torch.zeros_like(logits)], dim=1), torch.zeros(len(logits), dtype=torch.long)


class TestFeatures:
    @pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 300.0])
    def test_entropies_are_their_definitions(self, scale):
        logits, labels = answers(50, 1.0)
        exact = (scale * logits).numpy().astype(np.longdouble)
        p = np.exp(exact - exact.max(axis=1, keepdims=True))
        rest = np.stack([np.delete(p, j, axis=1).sum(axis=1) for j in range(4)], axis=1)  # not total - p: it cancels
        total = p.sum(axis=1, keepdims=True)
        log_p = exact - exact.max(axis=1, keepdims=True) - np.log(total)
        log_rest = np.log(rest) - np.log(total)
        true = np.eye(4, dtype=bool)[labels]
        modified = -(rest / total * log_p)[true] - np.where(true, 0, p / total * log_rest).sum(axis=1)
        for measured, expected in (
            (m_entropy(scale * logits, labels), modified),
            (entropy(scale * logits, labels), -(p / total * log_p).sum(axis=1)),
        ):
            np.testing.assert_allclose(measured.numpy(), expected.astype(float), rtol=1e-9, atol=1e-15)

    def test_m_entropy_depends_on_the_label(self):
        logits = torch.tensor([[20.0, 0.0, 0.0]])
        right, wrong = (float(m_entropy(logits, torch.tensor([label]))) for label in (0, 1))
        assert right == pytest.approx(6 * math.exp(-40), rel=1e-3)  # (1 - p_y)^2 and two p_j^2, to first order
        assert wrong == pytest.approx(40, abs=2)

    def test_m_entropy_falls_with_the_confidence_in_the_true_class(self):
        logits = torch.zeros(200, 3)
        logits[:, 1] = torch.linspace(-40, 40, 200)
        values = m_entropy(logits, torch.ones(200, dtype=torch.long))
        assert (values.diff() < 0).all()

    def test_stay_finite_where_the_softmax_saturates(self):
        logits, labels = torch.tensor([[3e38, -3e38], [-3e38, 3e38], [0.0, 0.0]]), torch.zeros(3, dtype=torch.long)
        for feature in FEATURES.values():
            assert feature(logits, labels).isfinite().all()


class TestMachine:
    @pytest.mark.parametrize("feature", list(FEATURES))
    def test_is_scikit_learns_on_one_feature(self, feature):
        retain, test, forget = answers(40, 2.0), answers(40, 1.0), answers(50, 1.5)
        order = torch.randperm(40, generator=torch.Generator().manual_seed(3))  # of which its rounding depends
        parts = [
            part.reshape(len(part), -1).numpy() for part in (FEATURES[feature](*of) for of in (retain, test, forget))
        ]
        machine = SVC(C=3, gamma="auto", kernel="rbf").fit(
            np.concatenate([parts[0][order], parts[1]]), [1] * 40 + [0] * 40
        )
        assert mis(retain, test, forget, feature=feature, seed=3) == 100 * np.mean(machine.predict(parts[2]) == 0)

    @pytest.mark.parametrize("attack", [mis, mis_threshold])
    def test_known_answers(self, attack):
        members, nonmembers = two_classes([3.0, 3.1, 3.2, 3.3] * 10), two_classes([-3.0, -3.1, -3.2, -3.3] * 10)
        assert attack(members, nonmembers, members) == 0.0
        assert attack(members, nonmembers, nonmembers) == 100.0
        mixed = tuple(torch.cat(parts) for parts in zip(members, nonmembers, nonmembers, nonmembers, strict=True))
        assert attack(members, nonmembers, mixed) == 75.0

    @pytest.mark.same_inputs
    def test_takes_as_many_members_as_there_are_test_samples_by_the_seed(self):
        retain, test, forget = answers(500, 1.0), answers(30, 0.5), answers(200, 0.7)
        by_seed = [mis(retain, test, forget, seed=seed) for seed in (0, 0, 1, 2, 3)]
        assert by_seed[0] == by_seed[1]
        assert len(set(by_seed)) > 1
        few = [mis(test, retain, forget, seed=seed) for seed in (0, 1, 2, 3)]  # of the larger set, whichever it is
        assert len(set(few)) > 1
        assert 0 <= min(by_seed) <= max(by_seed) <= 100

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ({"feature": "loss"}, "feature must be one of"),
            ({"seed": -1}, "seed must be"),
            ({"forget": answers(9, 1.0, classes=5)}, r"forget must be logits .* the same K >= 2, got shape \(9, 5\)"),
            ({"forget": answers(0, 1.0)}, "forget must be .* not empty"),
            ({"test": (torch.zeros(3, 4), torch.tensor([0, 1, 4]))}, r"labels of test must be in \[0, 4\)"),
            (
                {"retain": (torch.full((9, 4), math.nan), torch.zeros(9, dtype=torch.long))},
                "retain must be finite logits",
            ),
        ],
    )
    def test_refuses_what_does_not_fit(self, bad, message):
        good = {"retain": answers(8, 1.0), "test": answers(5, 1.0), "forget": answers(3, 1.0)}
        with pytest.raises(InputError, match=message):
            mis(**good | bad)


few = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)


class TestThreshold:
    @settings(deadline=None)
    @given(few, few, few)
    def test_is_the_highest_of_the_best(self, inside, outside, asked):
        truth = np.repeat([1, 0], [len(inside), len(outside)])
        scores = np.array(inside + outside)
        tried = [math.inf, *sorted(set(scores), reverse=True)]
        accuracies = np.round([balanced_accuracy_score(truth, scores >= of) for of in tried], 9)
        expected = 100 * np.mean(np.array(asked) < tried[int(np.argmax(accuracies))])
        assert mis_threshold(*map(two_classes, (inside, outside, asked))) == pytest.approx(expected)

    def test_separates_where_the_svm_cannot(self):
        # Probabilities from .99 to 1, all alike to a kernel of width one; log-odds two standard deviations apart.
        # Over draws 84.1 and 83 lower, deviations 0.7 and 3.2: both limits are ten of these away and more.
        retain, test, forget = (torch.randn(30_000) + of for of in (10.0, 8.0, 8.0))
        assert mis_threshold(*map(two_classes, (retain, test, forget))) == pytest.approx(84, abs=8)
        few = [two_classes(of[:1000]) for of in (retain, test, forget)]  # a kernel machine's time is quadratic
        assert mis(*few) < mis_threshold(*few) - 10

    def test_calls_no_sample_a_member_if_the_sets_are_equal(self):
        same = two_classes([1.0, 1.0])
        assert mis_threshold(same, same, same) == 100.0

    def test_is_of_the_log_odds(self):
        retain, test, forget = answers(60, 2.0), answers(40, 1.0), answers(50, 1.5)
        plain = [two_classes(log_odds(*of).tolist()) for of in (retain, test, forget)]
        assert mis_threshold(retain, test, forget) == mis_threshold(*plain)
