"""Every unlearning method against steps worked out by hand, and what each of them trains on."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import amun_ext.training.loop
from amun_ext import InputError, find_min_adversarial, unlearn
from amun_ext.models.reinitialise import reinitialised
from amun_ext.search import AdversarialSet
from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS, PRESETS
from amun_ext.unlearning.l1_sparse import SCHEDULES

ALONE = [method for method, row in METHODS.items() if not row.needs_retain]
WITH_RETAIN = [method for method, row in METHODS.items() if row.needs_retain]

# one step is the whole of a pass, for the order within it is random
BY_HAND = Recipe(epochs=4, lr=0.4, schedule="step:2", batch_size=64, momentum=0.9, weight_decay=0.05)
RATES = (0.4, 0.4, 0.04, 0.04)


def line(inputs: int = 2, classes: int = 2) -> nn.Linear:
    return nn.Linear(inputs, classes).double()


def samples(model: nn.Linear, count: int) -> TensorDataset:
    """Inputs in the unit box around the point where all logits meet, with the labels that the model gives them."""
    with torch.no_grad():
        model.bias.copy_(-0.5 * model.weight.sum(1))
    images = torch.rand(count, model.in_features, dtype=torch.float64)
    return TensorDataset(images, model(images).argmax(1))


class ByHand:
    """The weights of a linear model, and SGD on them: NumPy in float64, nothing of torch."""

    def __init__(self, model: nn.Linear, masks: dict[str, Tensor] | None = None, gradient_only: bool = False) -> None:
        self.weights = {name: weight.detach().numpy().copy() for name, weight in model.named_parameters()}
        self.momenta = {name: np.zeros_like(weight) for name, weight in self.weights.items()}
        self.masks = {} if masks is None else {name: mask.numpy() for name, mask in masks.items()}
        self.gradient_only = gradient_only

    def logits(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weights["weight"].T + self.weights["bias"]

    def residual(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Softmax less one-hot: the gradient of the cross-entropies with respect to the logits."""
        shifted = np.exp(self.logits(x) - self.logits(x).max(1, keepdims=True))
        return shifted / shifted.sum(1, keepdims=True) - np.eye(shifted.shape[1])[labels]

    def gradient(self, x: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Of the mean cross-entropy."""
        residual = self.residual(x, labels) / len(x)
        return {"weight": residual.T @ x, "bias": residual.sum(0)}

    def step(self, lr: float, x: np.ndarray, labels: np.ndarray, sign: int = 1, l1: float = 0.0) -> None:
        for name, grad in self.gradient(x, labels).items():
            weight, mask = self.weights[name], self.masks.get(name, np.True_)
            grad = sign * grad + l1 * np.sign(weight)
            if self.gradient_only:
                grad, mask = grad * mask, np.True_
            momentum = 0.9 * self.momenta[name] + grad + 0.05 * weight
            self.momenta[name] = np.where(mask, momentum, 0.0)
            self.weights[name] = np.where(mask, weight - lr * momentum, weight)

    def fgsm(self, x: np.ndarray, labels: np.ndarray, eps: float, low: float, high: float) -> np.ndarray:
        """Logits of the 8-bit images one step up the loss."""
        moved = np.clip(x + eps * np.sign(self.residual(x, labels) @ self.weights["weight"]), low, high)
        return self.logits(low + np.round((moved - low) / (high - low) * 255) / 255 * (high - low))


def arrays(data: TensorDataset) -> tuple[np.ndarray, np.ndarray]:
    images, labels = data.tensors
    return images.numpy(), labels.numpy()


def union(*sets: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([x for x, _ in sets]), np.concatenate([labels for _, labels in sets])


@dataclasses.dataclass
class Case:
    """A model of six parameters, its sets, and how they look to the hand."""

    model: nn.Linear
    forget: TensorDataset
    retain: TensorDataset
    adversarial: AdversarialSet

    def check(self, expected: ByHand, method: str, with_retain: bool, **options: object) -> None:
        result = unlearn(
            self.model,
            self.forget,
            self.retain if with_retain else None,
            method=method,
            **{"recipe": BY_HAND} | options,
        )
        for name, weight in result.named_parameters():
            np.testing.assert_allclose(weight.detach().numpy(), expected.weights[name], rtol=1e-10, atol=1e-12)
            assert not torch.allclose(weight, self.model.get_parameter(name))


@pytest.fixture
def case() -> Case:
    torch.manual_seed(7)  # both classes among the samples, and examples of all
    model = line()
    forget, retain = samples(model, 5), samples(model, 9)
    adversarial = find_min_adversarial(model, *forget.tensors)
    assert adversarial.found.all()
    return Case(model, forget, retain, adversarial)


@pytest.mark.parametrize(("weight", "temperature"), [(3.0, 1.0), (1.0, 2.0)])
@pytest.mark.parametrize("with_retain", [True, False])
def test_distill_by_hand(case: Case, with_retain: bool, weight: float, temperature: float) -> None:
    """Soft labels are the softmax of the targets; the weight counts beside a retain set only."""
    targets = torch.tensor([[2.0, -1.0], [0.0, 0.5], [-3.0, 3.0], [1.0, 1.0], [0.2, -0.2]], dtype=torch.float64)
    powers = np.exp(targets.numpy() / temperature)
    soft_labels = powers / powers.sum(1, keepdims=True)
    if with_retain:
        soft_labels *= weight

    class Soft(ByHand):
        def residual(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
            shifted = np.exp(self.logits(x))
            return labels.sum(1, keepdims=True) * shifted / shifted.sum(1, keepdims=True) - labels

    hand = Soft(case.model)
    images, labels = arrays(case.retain)
    whole = (arrays(case.forget)[0], soft_labels), *[(images, np.eye(2)[labels])] * with_retain
    for lr in RATES:
        hand.step(lr, *union(*whole))
    options = {"targets": targets, "weight": weight, "temperature": temperature}
    case.check(hand, "distill", with_retain, **options)


@pytest.mark.parametrize("with_retain", [True, False])
class TestByHand:
    """Four epochs with momentum, weight decay and a falling learning rate. There are two classes, so one wrong one."""

    def test_ga(self, case: Case, with_retain: bool) -> None:
        hand = ByHand(case.model)
        for lr in RATES:
            if with_retain:
                hand.step(lr, *arrays(case.retain))
            hand.step(lr, *arrays(case.forget), sign=-1)
        case.check(hand, "ga", with_retain)

    @pytest.mark.parametrize("order", ["mixed", "sequential"])
    def test_rl(self, case: Case, with_retain: bool, order: str) -> None:
        hand, (x, labels) = ByHand(case.model), arrays(case.forget)
        for lr in RATES:
            sets = [(x, 1 - labels), *([arrays(case.retain)] if with_retain else [])]
            for some in [union(*sets)] if order == "mixed" else sets:
                hand.step(lr, *some)
        case.check(hand, "rl", with_retain, order=order)

    @pytest.mark.parametrize("teacher", ["frozen", "per_epoch"])
    def test_bs(self, case: Case, with_retain: bool, teacher: str) -> None:
        hand, (x, labels) = ByHand(case.model), arrays(case.forget)
        for lr in RATES:
            if with_retain:
                hand.step(lr, *arrays(case.retain))
            hand.step(lr, x, 1 - labels)
        case.check(hand, "bs", with_retain, teacher=teacher)

    @pytest.mark.parametrize("include_forget", [True, False])
    def test_amun(self, case: Case, with_retain: bool, include_forget: bool) -> None:
        hand = ByHand(case.model)
        sets = [(case.adversarial.images.numpy(), 1 - case.forget.tensors[1].numpy())]
        sets += [arrays(case.forget)] if include_forget else []
        sets += [arrays(case.retain)] if with_retain else []
        for lr in RATES:
            hand.step(lr, *union(*sets))
        options = {"include_forget": include_forget, "adversarial": case.adversarial}
        case.check(hand, "amun", with_retain, **options)

    @pytest.mark.parametrize("gradient_only", [False, True])
    @pytest.mark.parametrize("method", ["salun", "amun+salun"])
    def test_with_a_mask(self, case: Case, with_retain: bool, method: str, gradient_only: bool) -> None:
        saliency = ByHand(case.model).gradient(*arrays(case.forget))
        ranked = np.sort(np.abs(np.concatenate([part.ravel() for part in saliency.values()])))
        # Four of six: what one class gains the other loses, so that scores come in pairs.
        between = (ranked[1] + ranked[2]) / 2
        masks = {name: torch.from_numpy(np.abs(part) > between) for name, part in saliency.items()}
        assert sum(int(mask.sum()) for mask in masks.values()) == 4
        hand = ByHand(case.model, masks, gradient_only)
        x, labels = arrays(case.forget)
        sets = [(x, 1 - labels)]
        if method == "amun+salun":
            sets = [(case.adversarial.images.numpy(), 1 - labels), (x, labels)]
        sets += [arrays(case.retain)] if with_retain else []
        for lr in RATES:
            hand.step(lr, *union(*sets))
        own = {"adversarial": case.adversarial} if method == "amun+salun" else {}
        case.check(hand, method, with_retain, mask=4 / 6, mask_gradient_only=gradient_only, **own)


class TestByHandOnTheRetainSet:
    def test_ft(self, case: Case) -> None:
        hand = ByHand(case.model)
        for lr in RATES:
            hand.step(lr, *arrays(case.retain))
        case.check(hand, "ft", True)

    @pytest.mark.parametrize(
        ("schedule", "weights"),
        [
            ("paper", [2, 1.5, 1, 0.5]),
            ("unlearn-sparse", [1, 0.75, 0.5, 0.25]),
            ("constant", [1, 1, 1, 1]),
            ("amun", [1, 2, 3, 3]),
        ],
    )
    def test_l1_sparse(self, case: Case, schedule: str, weights: list[float]) -> None:
        hand = ByHand(case.model)
        for lr, weight in zip(RATES, weights, strict=True):
            hand.step(lr, *arrays(case.retain), l1=0.02 * weight)
        case.check(hand, "l1-sparse", True, gamma=0.02, gamma_schedule=schedule)

    def test_retrain(self, case: Case) -> None:
        torch.manual_seed(11)
        hand = ByHand(reinitialised(case.model))
        for lr in RATES:
            hand.step(lr, *arrays(case.retain))
        case.check(hand, "retrain", True, seed=11)


def test_ga_at_learning_rate_zero_is_the_identity() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    forget, retain = (TensorDataset(torch.rand(9, 1, 4, 4), torch.arange(9) % 3) for _ in range(2))
    for sets in ((forget,), (forget, retain)):
        recipe = Recipe(epochs=3, lr=0.0, batch_size=4, batch_norm="frozen")
        result = unlearn(net, *sets, method="ga", recipe=recipe).state_dict()
        assert all(torch.equal(result[name], value) for name, value in net.state_dict().items())


class TestFrozenWeights:
    RECIPE = Recipe(epochs=10, lr=0.01, batch_size=4, momentum=0.9, weight_decay=5e-4)

    @staticmethod
    def decayed(steps: int) -> float:
        """What is left of a weight after so many steps of weight decay and momentum alone."""
        once = np.array([[1 - 0.01 * 5e-4, -0.01 * 0.9], [5e-4, 0.9]])  # of (w, b)
        return float(np.linalg.matrix_power(once, steps)[0, 0])

    def setting(self, method: str, case: Case) -> tuple[dict[str, Tensor], dict[str, object]]:
        masks = {"weight": torch.tensor([[True, False], [False, True]]), "bias": torch.tensor([False, True])}
        own = {"adversarial": case.adversarial} if method == "amun+salun" else {}
        return masks, {"method": method, "mask": masks, "recipe": self.RECIPE, **own}

    @pytest.mark.parametrize("method", ["salun", "amun+salun"])
    def test_keep_every_bit(self, case: Case, method: str) -> None:
        masks, options = self.setting(method, case)
        result = unlearn(case.model, case.forget, case.retain, **options)
        for name, weight in result.named_parameters():
            assert torch.equal(weight[~masks[name]], case.model.get_parameter(name)[~masks[name]])
            assert not torch.isclose(weight[masks[name]], case.model.get_parameter(name)[masks[name]], rtol=1e-6).any()

    def test_decay_when_the_gradient_alone_is_masked(self, case: Case) -> None:
        """The published code's leak: 0.807 of a weight is left after ten epochs of 430 batches."""
        assert self.decayed(4300) == pytest.approx(0.807, abs=5e-4)
        masks, options = self.setting("salun", case)
        result = unlearn(case.model, case.forget, case.retain, mask_gradient_only=True, **options)
        left = self.decayed(10 * 4)  # 14 samples in batches of 4
        for name, weight in result.named_parameters():
            before = case.model.get_parameter(name)[~masks[name]]
            torch.testing.assert_close(weight[~masks[name]], before * left, rtol=1e-12, atol=0)


Steps = list[tuple[Tensor, Tensor]]


@pytest.fixture
def steps(monkeypatch) -> Iterator[Steps]:
    """Inputs and labels of every step of training, in their order."""
    seen: Steps = []
    inputs: list[Tensor] = []

    def forward(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if module.training:
            inputs.append(args[0].detach().clone())

    def cross_entropy(logits: Tensor, labels: Tensor, **options: str) -> Tensor:
        seen.append((inputs[-1], labels.clone()))
        return nn.functional.cross_entropy(logits, labels, **options)

    monkeypatch.setattr(amun_ext.training.loop, "F", SimpleNamespace(cross_entropy=cross_entropy))
    register = nn.modules.module.register_module_forward_pre_hook
    handle = register(lambda module, args: forward(module, args) if isinstance(module, nn.Linear) else None)
    yield seen
    handle.remove()


def of(steps: Steps, images: Tensor) -> Tensor:
    """The labels [M, times] that each of `images` [M, D] was trained on with."""
    x, labels = torch.cat([x for x, _ in steps]), torch.cat([labels for _, labels in steps])
    return torch.stack([labels[(x == image).all(1)] for image in images])


class TestForgetSamples:
    RECIPE = Recipe(epochs=3, lr=0.05, batch_size=4)

    @pytest.mark.parametrize("with_retain", [True, False])
    @pytest.mark.parametrize(
        ("method", "options"),
        [
            ("rl", {}),
            ("rl", {"order": "sequential"}),
            ("salun", {}),
            ("bs", {}),
            ("bs", {"teacher": "per_epoch"}),
            ("amun", {"include_forget": False, "search": "pgd"}),  # which finds an example for all
            ("amun+salun", {"include_forget": False, "search": "pgd"}),
        ],
    )
    def test_are_never_trained_on_as_they_were(
        self, steps: Steps, method: str, options: dict[str, object], with_retain: bool
    ) -> None:
        model = line(3, 4)
        forget, retain = samples(model, 9), samples(model, 14)
        unlearn(model, forget, retain if with_retain else None, method=method, recipe=self.RECIPE, **options)
        images, truth = forget.tensors
        times = 3 if method in ("rl", "salun", "bs") else 0
        assert of(steps, images).shape == (9, times)
        assert not (of(steps, images) == truth[:, None]).any()
        if with_retain:
            assert torch.equal(of(steps, retain.tensors[0]), retain.tensors[1][:, None].expand(-1, 3))
        examples = 27 if times == 0 else 0
        assert sum(len(x) for x, _ in steps) == 9 * times + 14 * 3 * with_retain + examples

    @pytest.mark.parametrize("method", WITH_RETAIN)
    def test_are_not_looked_at_by_methods_of_the_retain_set(self, steps: Steps, method: str) -> None:
        model = line(3, 4)
        forget, retain = samples(model, 9), samples(model, 14)
        unlearn(model, forget, retain, method=method, recipe=self.RECIPE)
        assert of(steps, forget.tensors[0]).shape == (9, 0)
        assert torch.equal(of(steps, retain.tensors[0]), retain.tensors[1][:, None].expand(-1, 3))

    def test_of_ga_have_their_true_labels(self, steps: Steps) -> None:
        model = line(3, 4)
        forget, retain = samples(model, 9), samples(model, 14)
        unlearn(model, forget, retain, method="ga", recipe=self.RECIPE)
        for data in (forget, retain):
            assert torch.equal(of(steps, data.tensors[0]), data.tensors[1][:, None].expand(-1, 3))

    @pytest.mark.parametrize("method", WITH_RETAIN)
    def test_alone_are_refused_before_anything_is_done(self, method: str) -> None:
        class Untouchable(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                raise AssertionError

            def __deepcopy__(self, memo: object) -> nn.Module:
                raise AssertionError

        class Unread(torch.utils.data.Dataset):
            def __getitem__(self, index: int) -> object:
                raise AssertionError

            def __len__(self) -> int:
                raise AssertionError

        with pytest.raises(InputError, match=f"^retain must be given: method {method} trains on it, got None"):
            unlearn(Untouchable(2, 2), Unread(), method=method)


class TestRandomLabels:
    def labels(self, steps: Steps, **options: object) -> Tensor:
        """Of 200 forget samples, 40 of each of five classes, in 30 epochs."""
        model = nn.Linear(3, 5)
        forget = TensorDataset(torch.rand(200, 3), torch.arange(200) % 5)
        recipe = Recipe(epochs=30, lr=0.0, batch_size=200)
        steps.clear()
        unlearn(model, forget, method="rl", recipe=recipe, **options)
        assert len(steps) == 30
        return of(steps, forget.tensors[0]) - forget.tensors[1][:, None]  # 0 for the true one

    def test_are_uniform_over_the_wrong_classes_and_new_in_every_epoch(self, steps: Steps) -> None:
        shift = self.labels(steps) % 5
        counts = shift.view(40, 5, 30).permute(1, 0, 2).flatten(1)  # by true class
        counts = torch.stack([(counts == wrong).sum(1) for wrong in range(5)], dim=1)
        assert (counts[:, 0] == 0).all()
        chi_square = ((counts[:, 1:] - 300.0) ** 2 / 300).sum()
        assert chi_square < 60  # 15 degrees of freedom: beyond it once in three million seeds, and the seed is fixed
        agree = (shift[:, 1:] == shift[:, :-1]).float().mean()
        assert agree == pytest.approx(1 / 4, abs=0.04)

    def test_hit_the_true_label_once_in_k_where_they_may(self, steps: Steps) -> None:
        shift = self.labels(steps, true_label=True) % 5
        counts = torch.stack([(shift == each).sum() for each in range(5)])
        assert ((counts - 1200.0) ** 2 / 1200).sum() < 40

    def test_follow_from_the_seed(self, steps: Steps) -> None:
        first, same, other = (self.labels(steps, seed=seed) for seed in (3, 3, 4))
        assert torch.equal(first, same)
        assert (first == other).float().mean() < 0.5

    def test_are_not_of_the_stream_that_shuffles(self, steps: Steps) -> None:
        """It is seeded with the seed: labels drawn from the same would follow from a sample's place in its batch."""
        drawn = self.labels(steps, seed=0)
        stream = torch.randint(1, 5, (200,), generator=torch.Generator().manual_seed(0))
        assert ((drawn[:, 0] % 5) == stream).float().mean() < 0.5

    @pytest.mark.parametrize("order", ["mixed", "sequential"])
    def test_order(self, steps: Steps, order: str) -> None:
        model = line(3, 4)
        forget, retain = samples(model, 10), samples(model, 22)
        recipe = Recipe(epochs=2, lr=0.01, batch_size=8)
        unlearn(model, forget, retain, method="rl", order=order, recipe=recipe)
        is_forget = [(x[:, None] == forget.tensors[0]).all(2).any(1) for x, _ in steps]
        if order == "sequential":
            assert [len(x) for x, _ in steps] == [8, 2, 8, 8, 6] * 2
            assert [bool(each.all()) for each in is_forget] == [True, True, False, False, False] * 2
            assert not any(each.any() for each in is_forget[2:5])
        else:
            assert [len(x) for x, _ in steps] == [8, 8, 8, 8] * 2
            assert any(each.any() and not each.all() for each in is_forget)
            assert [int(torch.cat(is_forget[some]).sum()) for some in (slice(4), slice(4, 8))] == [10, 10]

    def test_orders_there_are_not(self, case: Case) -> None:
        for method in ("rl", "salun"):
            with pytest.raises(InputError, match=r"^order must be one of \('mixed', 'sequential'\), got 'random'"):
                unlearn(case.model, case.forget, method=method, order="random")


class TestBoundaryShrink:
    RECIPE = Recipe(epochs=2, lr=1.0, batch_size=64, momentum=0.9, weight_decay=0.05)

    def taught(self, steps: Steps, model: nn.Linear, forget: TensorDataset, **options: object) -> Tensor:
        """The labels [N, epochs] of the forget samples."""
        steps.clear()
        unlearn(model, forget, method="bs", **{"recipe": self.RECIPE} | options)
        return of(steps, forget.tensors[0])

    @pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 3.0)])
    @pytest.mark.parametrize("require_wrong", [True, False])
    def test_labels_are_those_of_the_fgsm_image(
        self, steps: Steps, bounds: tuple[float, float], require_wrong: bool
    ) -> None:
        torch.manual_seed(3)
        model, (low, high) = line(3, 4), bounds
        unit = samples(model, 60)
        forget = TensorDataset(low + unit.tensors[0] * (high - low), unit.tensors[1])
        x, labels = arrays(forget)
        logits = ByHand(model).fgsm(x, labels, 0.1, low, high)
        expected = logits.argmax(1)
        still = expected == labels
        assert 5 < still.sum() < 55  # of both kinds
        if require_wrong:
            second = np.argsort(logits, axis=1)[:, -2]
            expected = np.where(still, second, expected)
        options = {"bounds": bounds, "require_wrong": require_wrong}
        assert (self.taught(steps, model, forget, **options).numpy() == expected[:, None]).all()

    @pytest.mark.parametrize(("threshold", "label"), [(0.6035, 1), (0.6041, 0)])
    def test_the_image_has_eight_bits(self, steps: Steps, threshold: float, label: int) -> None:
        """0.503 + 0.1 becomes 154 / 255 = 0.6039: over the first boundary, and not over the second."""
        model = line(1, 2)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[0.0], [5.0]]))
            model.bias.copy_(torch.tensor([0.0, -5.0 * threshold]))
        forget = TensorDataset(torch.full((2, 1), 0.503, dtype=torch.float64), torch.tensor([0, 0]))
        assert (self.taught(steps, model, forget, require_wrong=False) == label).all()

    def test_the_image_stays_in_its_bounds(self, steps: Steps) -> None:
        model = line(1, 2)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[0.0], [5.0]]))
            model.bias.copy_(torch.tensor([0.0, -5.0 * 1.02]))
        forget = TensorDataset(torch.full((2, 1), 0.95, dtype=torch.float64), torch.tensor([0, 0]))
        assert (self.taught(steps, model, forget, require_wrong=False) == 0).all()
        assert (self.taught(steps, model, forget, require_wrong=False, bounds=(0.0, 2.0)) == 1).all()

    @pytest.mark.parametrize("with_retain", [True, False])
    def test_teachers(self, steps: Steps, with_retain: bool) -> None:
        """A new teacher is the model as it is after the pass over the retain set."""
        torch.manual_seed(5)
        model = line(3, 4)
        forget, retain = samples(model, 40), samples(model, 30)
        x, labels = arrays(forget)
        hand = ByHand(model)
        frozen = hand.fgsm(x, labels, 0.1, 0, 1).argmax(1)
        own = []
        for _ in range(2):
            if with_retain:
                hand.step(1.0, *arrays(retain))
            own.append(hand.fgsm(x, labels, 0.1, 0, 1).argmax(1))
            hand.step(1.0, x, own[-1])
        assert (own[1] != frozen).any()
        for teacher, expected in (("frozen", [frozen, frozen]), ("per_epoch", own)):
            steps.clear()
            options = {"teacher": teacher, "require_wrong": False, "recipe": self.RECIPE}
            unlearn(model, forget, retain if with_retain else None, method="bs", **options)
            assert (of(steps, forget.tensors[0]).numpy() == np.stack(expected, axis=1)).all()

    @pytest.mark.parametrize("teacher", ["frozen", "per_epoch"])
    def test_the_teacher_answers_in_eval_mode(self, steps: Steps, teacher: str) -> None:
        torch.manual_seed(3)
        linear = line(3, 4)
        forget = samples(linear, 40)
        x, labels = arrays(forget)
        expected = ByHand(linear).fgsm(x, labels, 0.1, 0, 1).argmax(1)
        model = nn.Sequential(linear, nn.Dropout(0.9)).train()
        options = {"teacher": teacher, "require_wrong": False, "recipe": dataclasses.replace(self.RECIPE, lr=0.0)}
        assert (self.taught(steps, model, forget, **options).numpy() == expected[:, None]).all()

    def test_bad_options(self, case: Case) -> None:
        for eps in (0.0, -0.1, float("inf"), float("nan"), "0.1"):
            with pytest.raises(InputError, match=r"^eps must be a positive, finite number, got "):
                unlearn(case.model, case.forget, method="bs", eps=eps)
        with pytest.raises(InputError, match=r"^teacher must be one of \('frozen', 'per_epoch'\), got 'kind'"):
            unlearn(case.model, case.forget, method="bs", teacher="kind")
        with pytest.raises(InputError, match=r"^forget must be inside bounds \(0\.0, 0\.5\)"):
            unlearn(case.model, case.forget, method="bs", bounds=(0.0, 0.5))


class TestL1Sparse:
    @pytest.fixture
    def weights(self, monkeypatch, case: Case) -> Callable[..., list[float]]:
        """What the l1 norm is multiplied by in every epoch."""

        def of_epochs(**options: object) -> list[float]:
            told = []

            def fit(model: nn.Module, passes: object, recipe: Recipe, run: object, *, penalty: Callable, **_: object):
                norm = sum(weight.abs().sum().item() for weight in model.parameters())
                told.extend(penalty(model, epoch).item() / norm for epoch in range(recipe.epochs))

            # the package has the function by this name
            monkeypatch.setattr(sys.modules["amun_ext.unlearning.l1_sparse"], "fit", fit)
            unlearn(case.model, case.forget, case.retain, method="l1-sparse", **options)
            return told

        return of_epochs

    @pytest.mark.parametrize(
        ("schedule", "expected"),
        [
            ("paper", [1e-3, 9e-4, 8e-4, 7e-4, 6e-4, 5e-4, 4e-4, 3e-4, 2e-4, 1e-4]),
            ("unlearn-sparse", [5e-4, 4.5e-4, 4e-4, 3.5e-4, 3e-4, 2.5e-4, 2e-4, 1.5e-4, 1e-4, 5e-5]),
            ("constant", [5e-4] * 10),
            ("amun", [5e-4, 1e-3, 1.8e-3, 2.88e-3, 4.03e-3, 4.84e-3, 4.84e-3, 3.87e-3, 2.32e-3, 9.3e-4]),
        ],
    )
    def test_schedules(self, weights, schedule: str, expected: list[float]) -> None:
        assert weights(gamma_schedule=schedule, gamma=5e-4) == pytest.approx(expected, rel=4e-3)

    def test_there_are_no_others(self, weights, case: Case) -> None:
        assert SCHEDULES.keys() == {"paper", "unlearn-sparse", "constant", "amun"}
        assert weights() == weights(gamma_schedule="paper", gamma=5e-4, recipe=Recipe(epochs=10, lr=0.01))
        with pytest.raises(InputError, match=r"^gamma_schedule must be one of .*, got 'linear'"):
            unlearn(case.model, case.forget, case.retain, method="l1-sparse", gamma_schedule="linear")

    def test_the_last_epochs_can_go_without(self, weights) -> None:
        """The schedule ends before them, as in the authors' code."""
        options = {"gamma_schedule": "unlearn-sparse", "gamma": 1e-3, "recipe": Recipe(epochs=5, lr=0.1)}
        assert weights(epochs_without=1, **options) == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4, 0])
        assert weights(epochs_without=5, **options) == [0] * 5
        for wrong, must_be in ((6, "at most the 5 epochs"), (-1, "a whole number from 0 on"), (0.5, "a whole number")):
            with pytest.raises(InputError, match=f"^epochs_without must be {must_be}"):
                weights(epochs_without=wrong, **options)

    def test_without_is_fine_tuning(self, case: Case) -> None:
        recipe = Recipe(epochs=3, lr=0.1, batch_size=4)
        ft = unlearn(case.model, case.forget, case.retain, method="ft", recipe=recipe)
        for options in ({"gamma": 0.0}, {"epochs_without": 3}):
            other = unlearn(case.model, case.forget, case.retain, method="l1-sparse", recipe=recipe, **options)
            assert torch.equal(ft.weight, other.weight)
        for gamma in (-1.0, float("inf"), float("nan"), "much"):
            with pytest.raises(InputError, match=r"^gamma must be finite and not negative, got "):
                unlearn(case.model, case.forget, case.retain, method="l1-sparse", gamma=gamma)

    def test_frozen_weights_are_no_part_of_the_norm(self, weights, case: Case) -> None:
        case.model.bias.requires_grad_(False)
        weight, bias = (each.detach().abs().sum().item() for each in case.model.parameters())
        assert weights(gamma=1.0, gamma_schedule="constant") == pytest.approx([weight / (weight + bias)] * 10)


AMUN = Recipe(epochs=10, lr=0.01, schedule="step:1", batch_size=128, momentum=0.9, weight_decay=5e-4, augment=True)


def saliency(lr: float, epochs: int = 10) -> Recipe:
    return Recipe(epochs=epochs, lr=lr, batch_size=256, momentum=0.9, weight_decay=5e-4, augment=True)


class TestPresets:
    """Against what is published: options with the methods' defaults in place of what a preset does not name."""

    EXPECTED = {  # noqa: RUF012
        ("amun-paper", "amun"): {"include_forget": True, "search": "pgd", "recipe": AMUN},
        ("amun-paper", "amun+salun"): {"include_forget": True, "search": "pgd", "recipe": AMUN},
        ("amun-paper", "rl"): {"true_label": False, "order": "mixed", "recipe": AMUN},
        ("amun-paper", "salun"): {"true_label": False, "order": "mixed", "recipe": AMUN},
        ("amun-paper", "ft"): {"recipe": AMUN},
        ("amun-paper", "l1-sparse"): {"gamma": 5e-4, "gamma_schedule": "paper", "epochs_without": 0, "recipe": AMUN},
        ("amun-paper-large", "amun"): {"include_forget": False, "search": "pgd", "recipe": AMUN},
        ("amun-paper-large", "amun+salun"): {"include_forget": False, "search": "pgd", "recipe": AMUN},
        ("amun-code", "amun"): {"include_forget": True, "search": "pgd", "recipe": AMUN},
        ("amun-code", "amun+salun"): {
            "include_forget": True, "search": "pgd", "mask_gradient_only": True, "recipe": AMUN,
        },
        ("amun-code", "rl"): {"true_label": False, "order": "mixed", "recipe": AMUN},
        ("amun-code", "salun"): {"true_label": False, "order": "mixed", "mask_gradient_only": True, "recipe": AMUN},
        ("amun-code", "bs"): {"eps": 0.1, "teacher": "per_epoch", "require_wrong": False, "recipe": AMUN},
        ("amun-code", "ft"): {"recipe": AMUN},
        ("amun-code", "l1-sparse"): {"gamma": 5e-4, "gamma_schedule": "amun", "epochs_without": 0, "recipe": AMUN},
        ("unlearn-saliency", "rl"): {"true_label": True, "order": "sequential", "recipe": saliency(0.001)},
        ("unlearn-saliency", "salun"): {"true_label": True, "order": "sequential", "recipe": saliency(0.013)},
        ("unlearn-saliency", "ga"): {"recipe": saliency(1e-5, 5)},
        ("unlearn-saliency", "bs"): {
            "eps": 0.1, "teacher": "frozen", "require_wrong": False, "recipe": saliency(1e-6),
        },
        ("unlearn-saliency", "ft"): {"recipe": saliency(0.01)},
        ("unlearn-saliency", "l1-sparse"): {
            "gamma": 1e-4, "gamma_schedule": "unlearn-sparse", "epochs_without": 0, "recipe": saliency(0.01),
        },
        ("unlearn-saliency-2023", "salun"): {
            "true_label": True, "order": "sequential", "mask_gradient_only": True, "recipe": saliency(0.013),
        },
    }  # fmt: skip

    ALL = [(preset, method) for preset, methods in PRESETS.items() for method in methods]  # noqa: RUF012

    def test_are_these(self) -> None:
        assert set(self.ALL) == self.EXPECTED.keys()

    @pytest.mark.parametrize(("preset", "method"), ALL)
    def test_options(self, preset: str, method: str) -> None:
        expected = dict(self.EXPECTED[preset, method])
        options = dict(PRESETS[preset][method])
        assert options.pop("mask_gradient_only", False) == expected.pop("mask_gradient_only", False)
        own = METHODS[method].options
        assert {name: options.pop(name, own[name].default) for name in expected} == expected
        assert not options
        assert METHODS[method].fraction == (0.5 if method.endswith("salun") else None)

    @pytest.mark.parametrize(("preset", "method"), ALL)
    def test_run(self, monkeypatch, preset: str, method: str) -> None:
        torch.manual_seed(2)  # a net that has examples of all six
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
        forget, retain = (TensorDataset(images, net(images).argmax(1)) for images in torch.rand(2, 6, 1, 8, 8))
        result = unlearn(net, forget, retain, method=method, preset=preset)
        assert not torch.equal(result[-1].weight, net[-1].weight)

    def test_explicit_options_come_first_one_by_one(self, monkeypatch) -> None:
        net, forget = (
            nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
            TensorDataset(torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 1])),
        )
        seen = []

        def told(model, forget, retain, run, *, true_label=None, order=None, recipe=BY_HAND) -> None:
            seen.append((true_label, order, recipe, run.mask_gradient_only))

        monkeypatch.setitem(METHODS, "salun", dataclasses.replace(METHODS["salun"], function=told))
        theirs = saliency(0.013)
        for own, expected in (
            ({}, (True, "sequential", theirs, True)),
            ({"order": "mixed"}, (True, "mixed", theirs, True)),
            ({"recipe": BY_HAND, "true_label": False}, (False, "sequential", BY_HAND, True)),
            ({"mask_gradient_only": False}, (True, "sequential", theirs, False)),
        ):
            unlearn(net, forget, method="salun", preset="unlearn-saliency-2023", **own)
            assert seen.pop() == expected

    def test_there_are_not(self, case: Case) -> None:
        with pytest.raises(InputError, match=r"^preset must be one of \('amun-paper', .*, got 'best'"):
            unlearn(case.model, case.forget, preset="best")
        with pytest.raises(
            InputError, match=r"^preset must be one that has method ga, which are \['unlearn-saliency'\]"
        ):
            unlearn(case.model, case.forget, method="ga", preset="amun-paper")
