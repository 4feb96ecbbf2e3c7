"""find_min_adversarial: closed forms, guarantees, hostile models, rules in Python and bad input."""

import contextlib
import copy
import dataclasses
import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from conftest import SEED
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext import AdversarialSet, InputError, find_min_adversarial
from amun_ext import search as search_module
from amun_ext.search import METHODS, Iterate, batch, graph
from amun_ext.search.finish import on_grid

SCALES = (0.1, 1.0, 20.0, 120.0, 1000.0)
LOSSES = ("cross_entropy", "margin")

pytestmark = pytest.mark.usefixtures("one_thread")


def unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.flatten(1).norm(dim=1).view(-1, *[1] * (vectors.dim() - 1))


def plain_ddn(step: Iterate) -> Tensor:
    """Decoupled direction and norm as its paper has it, but for the first radius; a row without a gradient is NaN."""
    first = 2 * step.margin / step.grad.flatten(1).norm(dim=1)
    step.eps = torch.where(step.step == 0, first, step.eps * torch.where(step.adversarial, 0.9, 1.1)).to(step.eps)
    length = step.eps.view(-1, *[1] * (step.x.dim() - 1))
    return step.inputs + length * unit(step.x - step.inputs + length * unit(step.grad))


ALL = {name: name for name in METHODS} | {"a rule": plain_ddn}
may_run_out = pytest.mark.filterwarnings("ignore:.*for want of a gradient")  # in a corner of the box, say
every_method = pytest.mark.parametrize("method", ALL.values(), ids=ALL.keys())
Task = tuple[nn.Module, Tensor, Tensor]


class Linear(nn.Module):
    """Logits scale * (W x + b), whose distances to the decision boundary are known."""

    def __init__(self, classes: int, features: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, features) / features**0.5)
        # All logits meet in the middle of the box, so that every input has an example inside it.
        self.bias = nn.Parameter(-0.5 * self.weight.detach().sum(1))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x.flatten(1) @ self.weight.T + self.bias)

    def distance(self, x: Tensor, labels: Tensor) -> Tensor:
        """min over j of |margin_j| / ||w_j - w_y||, without a box."""
        with torch.no_grad():
            logits = self(x) / self.scale
            margins = logits.gather(1, labels[:, None]) - logits
            lengths = (self.weight - self.weight[labels][:, None]).norm(dim=2)
            return (margins / lengths).scatter(1, labels[:, None], math.inf).amin(1)


def small_net(classes: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, classes)
    )


def trained_net(images: Tensor, labels: Tensor) -> nn.Sequential:
    """A net that is right on `images` and sure of it."""
    net = small_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def trained() -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        images, labels = torch.rand(100, 1, 6, 6), torch.randint(0, 4, (100,))
        return trained_net(images, labels), images, labels


@pytest.fixture
def task(trained: Task) -> Task:
    """A net that is right about 100 images, and these."""
    net, images, labels = trained
    right = net(images).argmax(1) == labels
    assert right.sum() > 80
    return copy.deepcopy(net), images[right], labels[right]


@pytest.fixture
def few(task: Task) -> Task:
    model, images, labels = task
    return model, images[:30], labels[:30]


def check_guarantees(
    model: nn.Module, inputs: Tensor, labels: Tensor, result: AdversarialSet, edges=(0.0, 1.0)
) -> None:
    """What holds for every result of every search."""
    found, places = result.found, (-1, *[1] * (inputs.dim() - 1))
    with torch.no_grad():
        logits = model(result.images.clone())
    # The model's own prediction. In a batch of another size a tie may round to the other side.
    rounding = 64 * torch.finfo(logits.dtype).eps * (logits.amax(1) - logits.amin(1))
    assert (logits.gather(1, result.labels[:, None])[:, 0] >= logits.amax(1) - rounding)[found].all()
    assert (result.labels != labels)[found].all()
    assert torch.equal(result.labels[~found], labels[~found].long())
    assert torch.equal(result.images, torch.where(found.view(places), result.images, inputs))
    assert result.images.aminmax().min >= torch.tensor(edges[0], dtype=inputs.dtype)
    assert result.images.aminmax().max <= torch.tensor(edges[1], dtype=inputs.dtype)
    assert result.images.dtype == inputs.dtype
    moved = (result.images.double() - inputs.double()).flatten(1).norm(dim=1)
    torch.testing.assert_close(result.distance[found].double(), moved[found], rtol=1e-4, atol=1e-6)
    assert (result.distance[found] <= result.eps[found] * (1 + 1e-4)).all()
    assert result.distance[~found].isinf().all()
    assert torch.equal(result.source_index, torch.arange(len(inputs)))
    assert torch.equal(result.true_labels, labels.long())
    assert (result.grad_evals >= 1).all()


def check_alike(one: AdversarialSet, other: AdversarialSet) -> None:
    """The same as far as a search can promise: rounding is chaotic over many steps (see DESIGN, section 3)."""
    assert torch.equal(one.found, other.found)
    found = one.found
    same = (one.labels == other.labels) & torch.isclose(one.eps, other.eps, rtol=0.02, atol=1e-6)
    assert same.double().mean() >= 0.97
    quantiles = torch.tensor([0.1, 0.5, 0.9], dtype=one.distance.dtype)
    torch.testing.assert_close(
        one.distance[found].quantile(quantiles), other.distance[found].quantile(quantiles), rtol=0.02, atol=1e-6
    )


class TestClosedForm:
    @pytest.mark.parametrize("scale", SCALES)
    @pytest.mark.parametrize("classes", [2, 10])
    def test_margin_loss_is_close_to_the_true_minimum(self, scale: float, classes: int) -> None:
        model, x = Linear(classes, 100, scale), torch.rand(200, 100)
        labels = model(x).argmax(1)
        truth = model.distance(x, labels)
        result = find_min_adversarial(model, x, labels, loss="margin", bounds=(-100.0, 100.0))
        assert result.found.all()
        ratio = result.distance / truth
        assert ratio.median() <= 1.12
        assert (ratio >= 1 - 1e-4).all()
        if classes == 2:  # one boundary: the overshoot is at most a step, eps / 10
            assert (ratio[truth > 0.02] <= 1.2 + 1e-4).all()

    @pytest.mark.parametrize(
        ("method", "classes", "features", "scale"),
        [
            pytest.param(method, *case, id=f"{name}-{case}")
            for case in [(2, 10, 0.1), (2, 3072, 1000.0), (10, 100, 1.0), (50, 3072, 120.0), (50, 10, 20.0)]
            for name, method in ALL.items()
            if method != "ffgsm" or case[0] == 2  # it heads for the boundary of no one class
        ],
    )
    def test_refined_it_is_the_true_minimum(self, method, classes: int, features: int, scale: float) -> None:
        model, x = Linear(classes, features, scale), torch.rand(60, features)
        labels = model(x).argmax(1)
        truth = model.distance(x, labels)
        if method == "ffgsm":  # one boundary, met along the sign of its normal
            normal = (model.weight[0] - model.weight[1]).detach()
            truth = truth * normal.norm() * features**0.5 / normal.abs().sum()
        result = find_min_adversarial(
            model, x, labels, method=method, loss="margin", refine=10, bounds=(-100.0, 100.0), eps_max=100.0
        )
        assert result.found.all()
        ratio = result.distance / truth
        assert ratio.median() <= 1.02
        assert (ratio >= 0.99).all()
        if classes == 2:
            assert (ratio[truth > 0.02] <= 1.02).all()

    @pytest.mark.parametrize("scale", SCALES)
    def test_cross_entropy_in_float32_agrees_with_float64(self, scale: float) -> None:
        model, x = Linear(10, 30, scale), torch.rand(100, 30)
        labels = model(x).argmax(1)
        single = find_min_adversarial(model, x, labels, bounds=(-100.0, 100.0))
        double = find_min_adversarial(model.double(), x.double(), labels, bounds=(-100.0, 100.0))
        assert single.found.all()
        assert double.found.all()
        torch.testing.assert_close(single.distance.double(), double.distance, rtol=0.01, atol=1e-6)

    @may_run_out
    @every_method
    def test_binding_box(self, method) -> None:
        """Logits x_0 + 10 x_1 - 0.5 and 0, with x_1 at its lower bound: only x_0 can still fall."""
        model = Linear(2, 2)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0, 10.0], [0.0, 0.0]]))
            model.bias.copy_(torch.tensor([-0.5, 0.0]))
        x, labels = torch.tensor([[0.8, 0.0]]), torch.tensor([0])
        for loss in LOSSES:
            result = find_min_adversarial(model, x, labels, method=method, loss=loss, steps=50)
            check_guarantees(model, x, labels, result)
            if method is plain_ddn:  # what the box cancels is most of its step
                continue
            assert result.found.all()
            assert result.images[0, 1] == 0
            assert 0.3 <= result.distance[0] <= 0.3 + 0.5 * result.eps[0]

    @may_run_out
    @every_method
    def test_no_example_inside_the_box(self, method) -> None:
        model = Linear(2, 2)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
            model.bias.copy_(torch.tensor([0.5, 0.0]))
        x = torch.tensor([[0.3, 0.4]])
        result = find_min_adversarial(model, x, torch.tensor([0]), method=method, refine=3, quantize=255)
        assert not result.found.any()
        assert torch.equal(result.images, x)
        assert result.distance.isinf().all()

    def test_step_count_and_radius_of_one_sample(self) -> None:
        """Distance 0.05 at eps_init 0.04: 10 steps fill the ball, 40 stay on it, the second round needs two more."""
        model = Linear(2, 1)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[-1.0], [0.0]]))
            model.bias.copy_(torch.tensor([0.55, 0.0]))
        result = find_min_adversarial(model, torch.tensor([[0.5]]), torch.tensor([0]), eps_init=0.04)
        assert result.eps.item() == pytest.approx(0.08)
        assert result.distance.item() == pytest.approx(0.056, abs=1e-5)
        assert result.grad_evals.item() == 50 + 2 + 1


@every_method
class TestGuarantees:
    @pytest.mark.parametrize("batch_size", [1, 7, 1000, None])
    def test_all_found_and_as_promised(self, few: Task, method, batch_size: int | None) -> None:
        model, images, labels = few
        if batch_size == 1:
            images, labels = images[:8], labels[:8]
        for loss in LOSSES:
            result = find_min_adversarial(model, images, labels, method=method, loss=loss, batch_size=batch_size)
            assert result.found.all()
            check_guarantees(model, images, labels, result)

    def test_does_not_depend_on_the_batch(self, task: Task, method) -> None:
        model, images, labels = task
        many = find_min_adversarial(model, images, labels, method=method, batch_size=len(images))
        for size in (9, 40):  # the last batch is ragged
            check_alike(find_min_adversarial(model, images, labels, method=method, batch_size=size), many)

    def test_does_not_depend_on_the_order(self, task: Task, method) -> None:
        model, images, labels = task
        order = torch.randperm(len(images))
        there = find_min_adversarial(model, images, labels, method=method, batch_size=30)
        back = find_min_adversarial(model, images[order], labels[order], method=method, batch_size=30)
        columns = {field.name: getattr(back, field.name)[order.argsort()] for field in dataclasses.fields(back)}
        assert torch.equal(order[columns["source_index"]], torch.arange(len(images)))
        if method == "ffgsm":  # another row has other random directions once the first try has failed
            first = (there.grad_evals == 1) & (columns["grad_evals"] == 1)
            there, columns = rows_of(there, first), {name: column[first] for name, column in columns.items()}
            assert len(there.found) > 40
        check_alike(there, AdversarialSet(**columns))

    def test_does_not_depend_on_chunks(self, task: Task, method, monkeypatch) -> None:
        model, images, labels = task
        whole = find_min_adversarial(model, images, labels, method=method, batch_size=16)
        monkeypatch.setattr(search_module, "CHUNK_BYTES", 40 * images[0].nbytes)
        parts = find_min_adversarial(model, images, labels, method=method, batch_size=16)
        check_guarantees(model, images, labels, parts)
        check_alike(whole, parts)

    def test_is_deterministic(self, few: Task, method) -> None:
        model, images, labels = few
        torch.manual_seed(1)
        first = find_min_adversarial(model, images, labels, method=method, batch_size=16, refine=2)
        torch.manual_seed(2)
        second = find_min_adversarial(model, images, labels, method=method, batch_size=16, refine=2)
        assert torch.equal(first.images, second.images)

    def test_the_cheaper_copy_finds_the_same(self, task: Task, method) -> None:
        model, images, labels = task
        cheap, plain = (
            find_min_adversarial(model, images, labels, method=method, prepare=prepare) for prepare in (True, False)
        )
        check_alike(cheap, plain)

    def test_misclassified_inputs_come_back_as_they_are(self, few: Task, method) -> None:
        model, images, _ = few
        labels = (model(images).argmax(1) + 1) % 4
        result = find_min_adversarial(model, images, labels, method=method, refine=3)
        assert torch.equal(result.images, images)
        assert (result.distance == 0).all()
        assert (result.eps == 0).all()
        assert (result.grad_evals == 1).all()
        assert result.found.all()
        check_guarantees(model, images, labels, result)

    @may_run_out
    def test_inputs_on_the_bounds(self, method) -> None:
        images, labels = torch.rand(50, 1, 6, 6).round(), torch.randint(0, 4, (50,))
        model = trained_net(images, labels)
        result = find_min_adversarial(model, images, labels, method=method)
        assert result.found.float().mean() >= (0.9 if method is plain_ddn else 1)  # it loses what the box cancels
        check_guarantees(model, images, labels, result)

    @pytest.mark.parametrize("layout", ["transposed", "channels_last", "expanded", "strided"])
    def test_layouts_of_the_inputs(self, task: Task, method, layout: str) -> None:
        model, images, _ = task
        images = {
            "transposed": images.transpose(2, 3),
            "channels_last": images.contiguous(memory_format=torch.channels_last),
            "expanded": images[:1].expand(5, -1, -1, -1),
            "strided": images[::3],
        }[layout]
        labels = model(images).argmax(1)
        result = find_min_adversarial(model, images, labels, method=method)
        plain = find_min_adversarial(model, images.contiguous(), labels, method=method)
        check_guarantees(model, images, labels, result)
        check_alike(plain, result)

    @may_run_out
    @pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 4, 5)])
    def test_inputs_of_any_rank(self, method, shape: tuple[int, ...]) -> None:
        model, x = Linear(3, math.prod(shape)), torch.rand(9, *shape)
        labels = model(x).argmax(1)
        result = find_min_adversarial(model, x, labels, method=method, bounds=(-100.0, 100.0), batch_size=4)
        assert result.found.all()
        assert result.images.shape == x.shape
        check_guarantees(model, x, labels, result, (-100.0, 100.0))

    @may_run_out
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_models_of_another_dtype(self, method, dtype: torch.dtype) -> None:
        model, x = Linear(3, 20).to(dtype), torch.rand(40, 20).to(dtype)
        labels = model(x).argmax(1)
        for refine in (0, 4):
            result = find_min_adversarial(model, x, labels, method=method, refine=refine)
            assert result.distance.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            found = result.found
            assert found.float().mean() > 0.75  # deepfool may be stuck at a tie of coarse logits
            check = (result.images.double() - x.double()).norm(dim=1)[found]
            assert torch.equal(model(result.images).argmax(1)[found], result.labels[found])
            assert (result.labels != labels)[found].all()
            torch.testing.assert_close(result.distance[found].double(), check, rtol=1e-4, atol=1e-6)

    @may_run_out
    @pytest.mark.parametrize(
        ("weights", "inputs"),
        [(torch.float16, torch.float32), (torch.float32, torch.float16), (torch.float64, torch.float32)],
        ids=str,
    )
    def test_inputs_of_another_dtype_than_the_model(self, method, weights: torch.dtype, inputs: torch.dtype) -> None:
        model, x = Linear(3, 20).to(weights), torch.rand(20, 20).to(inputs)
        labels = model(x.to(weights)).argmax(1)
        result = find_min_adversarial(model, x, labels, method=method)
        assert result.images.dtype == inputs
        assert result.found.float().mean() > 0.75
        predicted = model(result.images.to(weights)).argmax(1)
        assert torch.equal(predicted[result.found], result.labels[result.found])

    def test_labels_of_another_dtype(self, few: Task, method) -> None:
        model, images, labels = few
        expected = find_min_adversarial(model, images, labels, method=method)
        for dtype in (torch.int32, torch.uint8):
            result = find_min_adversarial(model, images, labels.to(dtype), method=method)
            assert result.labels.dtype == result.true_labels.dtype == torch.int64
            assert torch.equal(result.images, expected.images)

    @may_run_out
    def test_bounds_are_read_in_the_images_dtype(self, method) -> None:
        """0.3 is a little less than its float32 neighbour, which the search itself returns."""
        model, x = Linear(3, 5), torch.rand(8, 5).clamp(0, 0.3)
        labels = model(x).argmax(1)
        options = {"method": method, "bounds": (0.0, 0.3), "eps_max": 2.0}
        result = find_min_adversarial(model, x, labels, **options)
        again = find_min_adversarial(model, result.images, model(result.images).argmax(1), **options)
        assert again.images.max() <= torch.tensor(0.3)

    @may_run_out
    def test_nothing_is_farther_than_eps_max(self, task: Task, method) -> None:
        model, images, labels = task
        near = find_min_adversarial(model, images, labels, method=method)
        eps_max = float(near.distance.median())
        result = find_min_adversarial(model, images, labels, method=method, eps_max=eps_max)
        check_guarantees(model, images, labels, result)
        assert (result.distance[result.found] <= eps_max * 1.001).all()
        assert 0 < result.found.sum() < len(images)

    @may_run_out
    @pytest.mark.parametrize("eps_max", [100.0, 1e30, 1e300])
    def test_no_radius_is_too_large_for_it(self, method, eps_max: float) -> None:
        model, x = Linear(3, 6), torch.rand(8, 6)
        labels = model(x).argmax(1)
        expected = find_min_adversarial(model, x, labels, method=method)
        result = find_min_adversarial(model, x, labels, method=method, eps_max=eps_max)
        assert torch.equal(result.images, expected.images)
        if method in ("pgd", "ffgsm"):
            result = find_min_adversarial(model, x, labels, method=method, eps_max=eps_max, eps_growth=1e300)
            assert result.found.all()
            check_guarantees(model, x, labels, result)

    def test_float32_finds_what_a_saturated_softmax_hides(self, few: Task, method) -> None:
        model, images, labels = few
        plain = find_min_adversarial(model, images, labels, method=method)
        for loss in LOSSES:
            sharp = find_min_adversarial(Scaled(model, 2000.0), images, labels, method=method, loss=loss)
            assert sharp.found.all()
        if method != "ffgsm":  # its one gradient is another where the softmax is sharp
            assert sharp.distance.median() <= 1.3 * plain.distance.median()


class Scaled(nn.Module):
    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.model(x)


def rows_of(result: AdversarialSet, rows: Tensor) -> AdversarialSet:
    return AdversarialSet(**{field.name: getattr(result, field.name)[rows] for field in dataclasses.fields(result)})


class Watched(Linear):
    """Counts the inputs that it has been given."""

    seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return super().forward(x)


class TestCost:
    GRADIENTS: ClassVar = {
        "ddn": (20, 20),
        "deepfool": (10, 10),
        "ffgsm": (1, 5),
        "pgd": (2, 1000),
        plain_ddn: (20, 20),
    }

    @every_method
    def test_gradients_are_counted(self, few: Task, method) -> None:
        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method=method)
        least, most = self.GRADIENTS[method]
        fits = (result.grad_evals >= least) & (result.grad_evals <= most)
        assert fits.float().mean() >= 0.97  # one whose example does not hold on the model itself is searched twice

    @pytest.mark.parametrize("method", ["ddn", "deepfool", plain_ddn])
    def test_steps_are_gradients(self, few: Task, method) -> None:
        model, images, labels = few
        labels[0] = (labels[0] + 1) % 4  # misclassified: ends at once
        result = find_min_adversarial(model, images, labels, method=method, steps=7)
        assert result.grad_evals[0] == 1
        assert (result.grad_evals[1:] == 7).float().mean() >= 0.97

    @every_method
    def test_the_model_is_asked_no_more_than_that(self, method) -> None:
        """So a finished sample leaves the batch."""
        model, x = Watched(4, 36), torch.rand(64, 36)
        labels = Linear.forward(model, x).argmax(1)
        result = find_min_adversarial(model, x, labels, method=method, prepare=False, batch_size=64)
        looks = 9 * 5 if method == "ffgsm" else 1  # without a gradient
        assert model.seen <= int(result.grad_evals.sum()) + (looks + 1) * 64 + 2

    @every_method
    def test_bar_counts_every_sample_once(self, task: Task, method, monkeypatch) -> None:
        class Bar(contextlib.nullcontext):
            made: ClassVar[list["Bar"]] = []

            def __init__(self, total: int = 0, initial: int = 0, disable: bool = False, **_: object) -> None:
                super().__init__(self)
                self.n, self.total, self.disable = initial, total, disable
                Bar.made += [] if disable else [self]

            def update(self, count: int) -> None:
                assert count >= 0
                self.n += 0 if self.disable else count

        model, images, labels = task
        monkeypatch.setattr(search_module, "tqdm", Bar)
        monkeypatch.setattr(search_module, "CHUNK_BYTES", 40 * images[0].nbytes)
        find_min_adversarial(model, images, labels, method=method, batch_size=16, progress=True)
        (bar,) = Bar.made
        assert bar.n == bar.total == len(images)


class TestOptions:
    @pytest.mark.parametrize(
        ("method", "option"),
        [
            ("deepfool", "eps_init"),
            ("deepfool", "eps_growth"),
            ("deepfool", "step_fraction"),
            ("ffgsm", "step_fraction"),
        ]
        + [(plain_ddn, option) for option in ("eps_init", "eps_growth", "step_fraction")],
    )
    def test_a_setting_that_the_method_has_not_is_refused(self, method, option: str) -> None:
        with pytest.raises(InputError, match=f"{option} must be left out: method .* has no such setting, got 1.2"):
            find_min_adversarial(Linear(3, 5), X, Y, method=method, **{option: 1.2})

    @pytest.mark.parametrize("method", ["pgd", "ddn", "ffgsm"])
    def test_estimated_first_radius(self, few: Task, method: str) -> None:
        model, images, labels = few
        for scale in (1.0, 1e-3):  # of the distances
            small = Scaled(nn.Sequential(Stretched(scale), model), 1.0)
            result = find_min_adversarial(
                small, images * scale, labels, method=method, eps_init="estimate", bounds=(0.0, scale)
            )
            assert result.found.all()
            check_guarantees(small, images * scale, labels, result, (0.0, scale))
            if scale == 1:
                plain = result
        torch.testing.assert_close(plain.distance.median() * 1e-3, result.distance.median(), rtol=0.05, atol=0)

    def test_radius_of_ddn_may_be_given(self, few: Task) -> None:
        model, images, labels = few
        result = find_min_adversarial(
            model, images, labels, method="ddn", eps_init=0.3, eps_growth=1.2, step_fraction=0.5, steps=30
        )
        check_guarantees(model, images, labels, result)
        assert result.found.all()
        assert (result.grad_evals == 30).float().mean() >= 0.97


class Stretched(nn.Module):
    """Takes inputs in [0, scale]."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x / self.scale


class TestRefine:
    def test_linear_model_ends_on_the_boundary(self) -> None:
        model, x = Linear(2, 100), torch.rand(100, 100)
        labels = model(x).argmax(1)
        truth = model.distance(x, labels)
        result = find_min_adversarial(model, x, labels, loss="margin", bounds=(-100.0, 100.0), refine=10)
        assert result.found.all()
        far = truth > 0.02
        assert (result.distance[far] / truth[far] <= 1.02).all()

    @every_method
    def test_never_worse_and_still_as_promised(self, few: Task, method) -> None:
        model, images, labels = few
        plain, refined = (
            find_min_adversarial(model, images, labels, method=method, refine=passes) for passes in (0, 6)
        )
        check_guarantees(model, images, labels, refined)
        assert torch.equal(plain.found, refined.found)
        assert (refined.distance <= plain.distance * (1 + 1e-5)).all()
        if method in ("pgd", "ffgsm"):  # the others end at the boundary
            assert refined.distance.mean() < 0.99 * plain.distance.mean()

    @may_run_out
    @every_method
    def test_leaves_misclassified_and_unfound_inputs_alone(self, method) -> None:
        model, x = Linear(2, 3), torch.rand(6, 3)
        with torch.no_grad():
            model.bias.copy_(torch.tensor([50.0, 0.0]))
        labels = torch.tensor([0, 1] * 3)
        result = find_min_adversarial(model, x, labels, method=method, refine=5)
        assert result.found.tolist() == [False, True] * 3
        assert torch.equal(result.images, x)
        assert (result.distance[1::2] == 0).all()


def as_saved(images: Tensor, low: float = 0.0, high: float = 1.0, levels: int = 255) -> Tensor:
    """Through a file of 8-bit images and back."""
    saved = ((images - low) / (high - low) * levels).round().to(torch.uint8)
    return saved / levels if (low, high) == (0.0, 1.0) else saved / levels * (high - low) + low


class TestQuantize:
    @every_method
    @pytest.mark.parametrize("grid", [True, False], ids=["8-bit inputs", "any inputs"])
    def test_survives_8_bits_and_costs_little(self, few: Task, method, grid: bool) -> None:
        model, images, labels = few
        if grid:
            images = as_saved(images)
            labels = model(images).argmax(1)
        plain, saved = (
            find_min_adversarial(model, images, labels, method=method, refine=4, quantize=levels)
            for levels in (None, 255)
        )
        assert saved.found.all()
        assert torch.equal(saved.images, as_saved(saved.images))
        check_guarantees(model, images, labels, dataclasses.replace(saved, eps=saved.distance))
        assert (saved.distance / plain.distance).median() <= 1.1

    @pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-2.0, 0.7), (-0.1, 0.3), (3.0, 7.1), (-2.1179, 2.64)])
    def test_other_bounds(self, few: Task, bounds: tuple[float, float]) -> None:
        model, images, labels = few
        low, high = torch.tensor(bounds).tolist()
        shifted = nn.Sequential(Shifted(low, high - low), model)
        inputs = (images * (high - low) + low).clamp(low, high)
        labels = shifted(inputs).argmax(1)
        result = find_min_adversarial(shifted, inputs, labels, method="ddn", quantize=255, bounds=bounds)
        assert result.found.all()
        check_guarantees(shifted, inputs, labels, result, bounds)
        back = as_saved(result.images, low, high)
        torch.testing.assert_close(back, result.images, rtol=0, atol=1e-6 * (high - low + abs(low)))
        assert (shifted(back).argmax(1) != labels).float().mean() >= 0.98  # the last bit may differ

    @pytest.mark.parametrize("bounds", [(-2.0, 0.7), (-0.1, 0.3), (0.1, 0.9), (-123.4, 151.1)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_grid_is_inside_the_box_and_stays_where_it_is(self, bounds, dtype: torch.dtype) -> None:
        low, high = torch.tensor(bounds, dtype=dtype).tolist()
        x = torch.rand(1000, dtype=dtype) * (high - low) + low
        for levels in (1, 2, 3, 255):
            points = on_grid(torch.cat([x, x.new_tensor([low, high])]), (low, high), levels)
            assert points.min() == low
            assert points.max() == high
            assert len(points.unique()) <= levels + 1
            assert torch.equal(on_grid(points, (low, high), levels), points)

    @pytest.mark.parametrize("distance", [1e-2, 1e-3, 1e-4, 1e-5])
    @pytest.mark.parametrize("features", [30, 3072])
    def test_perturbations_of_less_than_a_level(self, distance: float, features: int) -> None:
        x = (torch.rand(20, features) * 0.8 + 0.1).mul(255).round() / 255
        model = Near(x, distance)
        labels = torch.zeros(20, dtype=torch.long)
        result = find_min_adversarial(model, x, labels, method="ddn", quantize=255)
        assert result.found.all()
        assert torch.equal(result.images, as_saved(result.images))
        assert (result.distance <= max(6 * distance, 0.03)).all()

    @may_run_out
    def test_what_the_grid_has_no_example_for_is_not_found(self) -> None:
        """Misclassified between two levels only."""

        class Between(Linear):
            def forward(self, x: Tensor) -> Tensor:
                off = (x * 255 - (x * 255).round()).abs().sum(1, keepdim=True)
                return torch.cat([0.2 - off, off * 0], 1)

        x = torch.rand(10, 4)
        labels = torch.zeros(10, dtype=torch.long)
        result = find_min_adversarial(Between(2, 4), x, labels, method="ddn", quantize=255, steps=5)
        assert not result.found.any()
        assert torch.equal(result.images, x)
        assert result.distance.isinf().all()

    @may_run_out
    def test_answers_that_change(self) -> None:
        torch.manual_seed(0)
        model, x = Restless(3, 4), torch.rand(2000, 4)
        result = find_min_adversarial(model, x, torch.zeros(2000, dtype=torch.long), method="ddn", quantize=255)
        assert 0 < result.found.sum() < 2000
        assert torch.equal(result.images[result.found], as_saved(result.images[result.found]))

    def test_misclassified_inputs_on_the_grid_stay(self, few: Task) -> None:
        model, images, _ = few
        images = as_saved(images)
        labels = (model(images).argmax(1) + 1) % 4
        result = find_min_adversarial(model, images, labels, quantize=255)
        assert torch.equal(result.images, images)
        assert (result.distance == 0).all()

    @may_run_out
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_other_dtypes(self, dtype: torch.dtype) -> None:
        model, x = Linear(3, 20).to(dtype), torch.rand(20, 20).to(dtype)
        labels = model(x).argmax(1)
        result = find_min_adversarial(model, x, labels, method="ddn", quantize=255)
        found = result.found
        assert found.float().mean() > 0.75
        levels = (result.images.double() * 255).round()
        torch.testing.assert_close((levels / 255).to(dtype)[found], result.images[found], rtol=0, atol=0)
        assert torch.equal(model(result.images).argmax(1)[found], result.labels[found])


class Shifted(nn.Module):
    def __init__(self, low: float, width: float) -> None:
        super().__init__()
        self.low, self.width = low, width

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.low) / self.width


class Near(nn.Module):
    """One boundary, as far from each of some images."""

    def __init__(self, images: Tensor, distance: float) -> None:
        super().__init__()
        self.normal = nn.Parameter(unit(torch.randn(1, images.shape[1]))[0])
        self.register_buffer("images", images)
        self.distance = distance

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.detach(), self.images).argmin(1)
        left = self.distance - (x - self.images[nearest]) @ self.normal
        return torch.stack([left, torch.zeros_like(left)], 1) / self.distance


class Restless(Linear):
    """With noise that never sleeps, what was adversarial once need not be so again."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 3 * torch.randn(len(x), 3)


class TestMargin:
    @every_method
    @pytest.mark.parametrize("gap", [0.1, 3.0])
    def test_the_wrong_class_is_ahead_by_it(self, few: Task, method, gap: float) -> None:
        model, images, labels = few
        plain = find_min_adversarial(model, images, labels, method=method)
        for more in ({}, {"refine": 6}, {"quantize": 255}):
            result = find_min_adversarial(model, images, labels, method=method, margin=gap, **more)
            assert result.found.float().mean() > 0.9
            logits = model(result.images)
            own = logits.gather(1, labels[:, None])[:, 0]
            ahead = logits.gather(1, result.labels[:, None])[:, 0] - own
            assert (ahead >= gap - 1e-4)[result.found].all()
            if not more:
                check_guarantees(model, images, labels, result)
        assert gap < 1 or result.distance.median() > plain.distance.median()

    @may_run_out
    @every_method
    def test_misclassified_by_less_than_it_goes_on(self, few: Task, method) -> None:
        model, images, _ = few
        ranked = model(images).detach().sort(1, descending=True)
        labels, ahead = ranked.indices[:, 1], ranked.values[:, 0] - ranked.values[:, 1]
        gap = float(ahead.median())
        result = find_min_adversarial(model, images, labels, method=method, margin=gap)
        assert (result.distance[ahead > gap * 1.001] == 0).all()
        assert (result.distance[ahead < gap * 0.999] > 0).all()
        assert result.found.float().mean() > 0.9

    @may_run_out
    def test_a_gap_that_cannot_be_had(self, few: Task) -> None:
        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method="ddn", margin=1e6, refine=2, quantize=255)
        assert not result.found.any()


class TestPrecision:
    @every_method
    def test_examples_hold_in_the_callers_precision(self, few: Task, method) -> None:
        model, images, labels = few
        plain = find_min_adversarial(model, images, labels, method=method)
        result = find_min_adversarial(model, images, labels, method=method, precision="bfloat16")
        assert result.found.all()
        check_guarantees(model, images, labels, result)
        torch.testing.assert_close(result.distance.median(), plain.distance.median(), rtol=0.1, atol=0)

    @every_method
    @pytest.mark.parametrize("what", ["constant", "detached", "nan"])
    def test_what_it_cannot_see_is_found_in_the_callers(self, method, what: str) -> None:
        class Blind(Linear):
            def forward(self, x: Tensor) -> Tensor:
                logits = super().forward(x)
                if not torch.is_autocast_enabled("cpu"):
                    return logits
                if what == "constant":
                    return logits * 0.001 + torch.tensor([50.0, 0.0, 0.0])
                return logits.detach() * (torch.nan if what == "nan" else 1)

        model, x = Blind(3, 30), torch.rand(1000, 30)
        labels = model(x).argmax(1)
        x, labels = x[labels == 0][:10], labels[labels == 0][:10]
        assert len(x)
        result = find_min_adversarial(model, x, labels, method=method, precision="bfloat16")
        assert result.found.all()
        check_guarantees(model, x, labels, result)

    def test_a_wrong_answer_in_it_does_not_pass(self) -> None:
        class Fooled(Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x).flip(1) if torch.is_autocast_enabled("cpu") else super().forward(x)

        model, x = Fooled(2, 30), torch.rand(20, 30)
        labels = model(x).argmax(1)
        for method in ALL.values():
            result = find_min_adversarial(model, x, labels, method=method, precision="bfloat16")
            assert result.found.all()
            assert (result.distance > 0).all()
            check_guarantees(model, x, labels, result)


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
    @pytest.mark.parametrize("prepare", [True, False])
    def test_buffers_that_change_in_eval_mode_are_put_back(self, method, prepare: bool) -> None:
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
            model, torch.rand(4, 5), torch.zeros(4, dtype=torch.long), method=method, eps_max=1.0, prepare=prepare
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


class Around(nn.Module):
    """A model around another, as users have them; `forward` of each kind answers as the inner one does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


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


class Scalar(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum()


class WithAScalarPart(Around):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.penalty = Scalar()

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.penalty(x).detach()
        return self.inner(x)


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
    def test_shared_weights(self, method) -> None:
        model, x = tied(), torch.rand(20, 1, 6, 6)
        labels = model(x).argmax(1)
        result = find_min_adversarial(model, x, labels, method=method)
        assert model[3].weight is model[1].weight
        assert result.found.float().mean() > 0.5
        check_guarantees(model, x, labels, result)

    @may_run_out
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
        check_guarantees(Linear.forward.__get__(model), x, labels, result) if False else None
        labels = torch.arange(10) % 2
        result = find_min_adversarial(Certain(3, 6), x, labels, method=method, steps=5)
        assert torch.equal(result.found, labels == 1)
        assert torch.equal(result.images, x)

    @may_run_out
    @every_method
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


class TestPythonRules:
    @may_run_out
    def test_a_few_lines_are_a_search(self, few: Task) -> None:
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
        result = find_min_adversarial(model, images, labels, method=rule, steps=8, batch_size=16, prepare=False)
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
    def test_what_it_does_to_its_iterate_stays_there(self, few: Task) -> None:
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
    def test_the_box_holds(self, few: Task) -> None:
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

    def test_its_errors_come_through(self, few: Task) -> None:
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


class FakeCuda:
    """As much of torch.cuda as a graph needs. What is launched during a capture is recorded, and does not run."""

    def __init__(self, monkeypatch, failing: bool = False) -> None:
        self.capturing, self.recorded, self.ran, self.failing, self.captures = False, 0, 0, failing, 0
        for name in ("Stream", "current_stream", "device", "stream", "CUDAGraph", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def launch(self) -> None:
        if self.capturing:
            self.recorded += 1
        else:
            self.ran += 1

    def Stream(self) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(wait_stream=lambda _other: None)

    current_stream = Stream

    def device(self, _device: torch.device) -> contextlib.nullcontext:
        return contextlib.nullcontext()

    stream = device

    def CUDAGraph(self) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(replay=self.replay)

    def replay(self) -> None:
        self.ran += self.recorded

    @contextlib.contextmanager
    def graph(self, _graph: object):
        self.captures, self.capturing, self.recorded = self.captures + 1, True, 0
        try:
            yield
        finally:
            self.capturing = False
        if self.failing:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")


class TestGraph:
    def test_on_a_cpu_it_is_the_function_itself(self) -> None:
        def iterate() -> None:
            pass

        assert graph.repeated(iterate, torch.device("cpu")) is iterate

    def test_every_call_is_one_iteration(self, monkeypatch) -> None:
        cuda = FakeCuda(monkeypatch)
        once = graph.repeated(cuda.launch, torch.device("cuda"))
        for calls in range(1, 3 * graph.WARM_UP + 2):
            once()
            assert cuda.ran == calls
        assert cuda.captures == 1

    def test_what_cannot_be_captured_goes_on_with_one_warning(self, monkeypatch) -> None:
        cuda = FakeCuda(monkeypatch, failing=True)
        once = graph.repeated(cuda.launch, torch.device("cuda"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for calls in range(1, 3 * graph.WARM_UP + 2):
                once()
                assert cuda.ran == calls
        assert [str(warning.message) for warning in caught] == [
            "the search goes on without a CUDA graph: operation not permitted when stream is capturing"
        ]
        assert cuda.captures == 1

    def test_errors_of_the_model_are_no_matter_of_graphs(self, monkeypatch) -> None:
        cuda = FakeCuda(monkeypatch)

        def failing() -> None:
            cuda.launch()
            raise ZeroDivisionError

        once = graph.repeated(failing, torch.device("cuda"))
        with pytest.raises(ZeroDivisionError):
            once()


class TestBatchSize:
    """32 samples a thread, or what fits the cache: here a layer's output has 1,000 bytes, and its input as many."""

    @pytest.mark.parametrize(
        ("cache", "threads", "expected"),
        [(2**40, 1, 32), (2**40, 4, 128), (100_000, 4, 50), (100_000, 1, 32), (10_000, 4, 8), (0, 4, 8), (0, 1, 8)],
    )
    def test_bounds(self, monkeypatch, cache: int, threads: int, expected: int) -> None:
        monkeypatch.setattr(batch, "last_level_cache", lambda: cache)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        model = nn.Sequential(nn.Linear(4, 250), nn.ReLU(), nn.Linear(250, 3))
        assert batch.fitting(model, torch.rand(8, 4)) == expected
        assert batch.fitting(model.double(), torch.rand(8, 4).double()) == max(8, min(expected, cache // 4000))

    def test_on_a_gpu(self) -> None:
        assert batch.fitting(nn.Identity(), torch.empty(8, 4, device="meta")) == batch.ON_GPU

    @pytest.mark.parametrize("model", [Linear(3, 4), WithAScalarPart(Linear(3, 4))], ids=["one", "scalar"])
    def test_models_whose_layers_tell_nothing(self, model: nn.Module) -> None:
        assert batch.fitting(model, torch.rand(8, 4)) in range(8, 33)

    def test_leaves_no_trace(self) -> None:
        class Counting(Around):
            def __init__(self, inner: nn.Module, fails: bool) -> None:
                super().__init__(inner)
                self.register_buffer("calls", torch.zeros(()))
                self.fails = fails

            def forward(self, x: Tensor) -> Tensor:
                self.calls += 1
                if self.fails:
                    raise RuntimeError("no")
                return self.inner(x)

        for fails in (False, True):
            model = Counting(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), fails)
            with contextlib.suppress(RuntimeError):
                batch.fitting(model, torch.rand(8, 4))
            assert not any(module._forward_hooks for module in model.modules())
            assert model.calls == model.inner[1].num_batches_tracked == 0

    def test_the_cache_of_this_machine(self, monkeypatch, tmp_path) -> None:
        assert batch.last_level_cache() >= 2**10
        for index, size in enumerate(["48K\n", "2M", "", "weird"]):
            (tmp_path / f"index{index}").mkdir()
            (tmp_path / f"index{index}" / "size").write_text(size)
        monkeypatch.setattr(batch, "Path", lambda _path: tmp_path)
        assert batch.last_level_cache() == 2 * 2**20
        monkeypatch.setattr(batch, "Path", lambda _path: tmp_path / "nothing")
        assert batch.last_level_cache() == batch.CACHE_WITHOUT_ANSWER


class TestAdversarialSet:
    def test_is_a_dataset_of_what_was_found(self, few: Task) -> None:
        model, images, labels = few
        found = find_min_adversarial(model, images, labels)
        odd = torch.arange(len(images)) % 2 == 1
        result = dataclasses.replace(found, found=odd)
        assert len(result) == odd.sum()
        image, label = result[3]
        assert torch.equal(image, found.images[7])
        assert label == found.labels[7]
        with pytest.raises(IndexError):
            result[len(result)]

    def test_save_and_load(self, few: Task, tmp_path) -> None:
        model, images, labels = few
        result = find_min_adversarial(model, images, labels)
        result.save(tmp_path / "set.safetensors")
        loaded = AdversarialSet.load(tmp_path / "set.safetensors")
        assert all(torch.equal(value, getattr(loaded, key)) for key, value in dataclasses.asdict(result).items())
        assert [path.name for path in tmp_path.iterdir()] == ["set.safetensors"]

    def test_load_refuses_other_files(self, tmp_path) -> None:
        (tmp_path / "text").write_text("not a set")
        for name in ("text", "absent"):
            with pytest.raises(InputError, match=r"path must be a file that AdversarialSet\.save wrote"):
                AdversarialSet.load(tmp_path / name)


class TestTransfer:
    @may_run_out
    @every_method
    def test_to_the_model_itself(self, few: Task, method) -> None:
        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method=method, eps_max=0.5, margin=1e-3)
        model.train()
        transfer = result.transfer(model, batch_size=7)
        assert model.training
        assert torch.equal(transfer.fooled, result.found)
        assert torch.equal(transfer.labels, result.labels)

    @may_run_out
    def test_to_another(self, few: Task) -> None:
        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method="ddn", eps_max=0.5)
        other = trained_net(images, labels)
        with torch.inference_mode():
            transfer = result.transfer(other)
        assert not transfer.labels.requires_grad
        predicted = other(result.images).argmax(1)
        assert torch.equal(transfer.labels, predicted)
        assert torch.equal(transfer.fooled, result.found & (predicted != labels))
        assert result.transfer(other.half()).labels.shape == labels.shape

    def test_a_model_that_changes_its_input_does_not_change_the_set(self, few: Task) -> None:
        class Zeroing(Around):
            def forward(self, x: Tensor) -> Tensor:
                logits = self.inner(x)
                x.zero_()
                return logits

        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method="ddn")
        kept = result.images.clone()
        assert result.transfer(Zeroing(model)).fooled.float().mean() > 0.9
        assert torch.equal(result.images, kept)

    def test_nan_fools_nobody(self, few: Task) -> None:
        class Broken(Around):
            def forward(self, x: Tensor) -> Tensor:
                return self.inner(x) * torch.nan

        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method="ddn")
        transfer = result.transfer(Broken(model))
        assert not transfer.fooled.any()
        assert (transfer.labels == -1).all()

    @may_run_out
    @pytest.mark.parametrize(
        ("model", "message"),
        [(len, "model must be an nn.Module"), (Linear(2, 36), "model must be of at least 4 classes, got 2")],
        ids=["no model", "fewer classes"],
    )
    def test_refuses_other_models(self, few: Task, model, message: str) -> None:
        own, images, labels = few
        labels[0] = 3
        result = find_min_adversarial(own, images, labels, method="ddn", steps=1)
        with pytest.raises(InputError, match=message):
            result.transfer(model)
        with pytest.raises(InputError, match="batch_size must be"):
            result.transfer(own, batch_size=0)


class Pairs(Dataset):
    def __init__(self, *items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


class TestDatasets:
    @every_method
    def test_any_map_style_dataset(self, few: Task, method) -> None:
        model, images, labels = few
        tensors = find_min_adversarial(model, images, labels, method=method)
        pairs = Pairs(*zip(images, labels.tolist(), strict=True))
        for dataset in (TensorDataset(images, labels), pairs):
            assert torch.equal(find_min_adversarial(model, dataset, method=method).images, tensors.images)

    @pytest.mark.parametrize(
        ("item", "message"),
        [
            ((torch.zeros(1, 6, 5), 0), r"inputs\[70\] must be an image like inputs\[.*\], \(1, 6, 6\) torch.float32"),
            ((torch.zeros(1, 6, 6).double(), 0), r"inputs\[70\] must be an image like"),
            ((torch.full((1, 6, 6), torch.nan), 0), r"inputs\[70\] must be free of NaN"),
            ((torch.full((1, 6, 6), 1.5), 0), r"inputs\[70\] must be inside bounds"),
            ((torch.zeros(1, 6, 6), -1), r"inputs\[70\] label must be in \[0, 4\)"),
            ((torch.zeros(1, 6, 6), 4), r"inputs\[70\] label must be in \[0, 4\), got values from 4 to 4"),
            ((torch.zeros(1, 6, 6), 0.5), r"inputs\[70\] must be a pair"),
            ((torch.zeros(1, 6, 6),), r"inputs\[70\] must be a pair"),
            (None, r"inputs\[70\] must be a pair"),
        ],
    )
    def test_a_bad_item_is_named(self, task: Task, item, message: str) -> None:
        model, images, labels = task
        pairs = Pairs(*zip(images, labels.tolist(), strict=True))
        pairs.items = (*pairs.items[:70], item, *pairs.items[71:])
        with pytest.raises(InputError, match=message):
            find_min_adversarial(model, pairs, method="ddn", steps=2)

    @pytest.mark.parametrize("row", [0, 3])
    def test_among_the_first_ones_too(self, task: Task, row: int) -> None:
        model, images, labels = task
        images[row] = torch.nan
        with pytest.raises(InputError, match=rf"inputs\[{row}\] must be free of NaN"):
            find_min_adversarial(model, Pairs(*zip(images, labels.tolist(), strict=True)))


X, Y = torch.rand(4, 5), torch.zeros(4, dtype=torch.long)
BAD = {
    "not a tensor": ({"inputs": [1.0]}, "inputs must be"),
    "8-bit": ({"inputs": torch.zeros(4, 5, dtype=torch.uint8)}, "inputs must be floating point"),
    "rank": ({"inputs": torch.rand(4)}, "inputs must be a batch"),
    "empty": ({"inputs": torch.rand(0, 5), "labels": Y[:0]}, "inputs must be a non-empty batch"),
    "nan": ({"inputs": X * torch.nan}, "inputs must be free of NaN"),
    "infinite": ({"inputs": X + torch.inf}, "inputs must be finite"),
    "outside": ({"inputs": X + 1}, "inputs must be inside bounds"),
    "no labels": ({"labels": None}, "labels must be a tensor"),
    "label too large": ({"labels": Y + 3}, r"labels must be in \[0, 3\), got values from 3 to 3"),
    "label negative": ({"labels": Y - 1}, "labels must be not negative"),
    "labels float": ({"labels": Y.float()}, "labels must be integers"),
    "labels bool": ({"labels": Y.bool()}, "labels must be integers"),
    "labels count": ({"labels": Y[:3]}, r"labels must be of shape \(4,\)"),
    "labels rank": ({"labels": Y[:, None]}, r"labels must be of shape \(4,\)"),
    "labels beside a dataset": ({"inputs": TensorDataset(X, Y)}, "inputs must be a tensor"),
    "method": ({"method": "cw"}, "method must be one of"),
    "loss": ({"loss": "hinge"}, "loss must be one of"),
    "eps_init": ({"eps_init": 0}, "eps_init must be from"),
    "eps_growth": ({"eps_growth": 1}, "eps_growth must be at least"),
    "eps_max": ({"eps_max": 0.01}, "eps_max must be finite and at least"),
    "eps_max inf": ({"eps_max": math.inf}, "eps_max must be finite"),
    "eps_init nan": ({"eps_init": math.nan}, "eps_init must be from"),
    "growth that float32 rounds away": ({"eps_growth": 1 + 1e-9}, "eps_growth must be at least"),
    "steps too many": ({"steps": 2**31}, "steps must be"),
    "a bool": ({"batch_size": True}, "batch_size must be"),
    "step_fraction inf": ({"step_fraction": math.inf}, "step_fraction must be in"),
    "bounds of three": ({"bounds": (0, 1, 2)}, "bounds must be"),
    "steps": ({"steps": 0}, "steps must be"),
    "steps float": ({"steps": 2.5}, "steps must be"),
    "step_fraction": ({"step_fraction": -1}, "step_fraction must be in"),
    "refine": ({"refine": -1}, "refine must be"),
    "batch_size": ({"batch_size": 0}, "batch_size must be"),
    "bounds": ({"bounds": (1.0, 0.0)}, "bounds must be"),
    "no items": ({"inputs": TensorDataset(X[:0], Y[:0]), "labels": None}, "inputs must be non-empty"),
    "a scalar": ({"inputs": torch.tensor(0.5)}, "inputs must be a batch"),
    "method of another type": ({"method": ["pgd"]}, "method must be one of"),
    "eps_init text": ({"eps_init": "guess"}, "eps_init must be a radius or"),
    "eps_init bool": ({"eps_init": True}, "eps_init must be a number"),
    "eps_growth text": ({"eps_growth": "2"}, "eps_growth must be a number"),
    "eps_growth of ddn": ({"method": "ddn", "eps_growth": 1.5}, "eps_growth must be below 1.5 with method ddn"),
    "eps_max text": ({"eps_max": "2"}, "eps_max must be a number"),
    "step_fraction text": ({"step_fraction": "2"}, "step_fraction must be a number"),
    "margin negative": ({"margin": -1}, "margin must be finite and not negative"),
    "margin nan": ({"margin": math.nan}, "margin must be finite"),
    "margin text": ({"margin": "1"}, "margin must be a number"),
    "quantize": ({"quantize": 0}, "quantize must be"),
    "quantize bool": ({"quantize": True}, "quantize must be"),
    "precision": ({"precision": "float16"}, "precision must be one of"),
    "precision without a copy": ({"precision": "bfloat16", "prepare": False}, "precision must be None with prepare"),
    "prepare": ({"prepare": 1}, "prepare must be True or False"),
    "out": ({"out": "/"}, "out must be a file to be written"),
    "model": ({"model": len}, "model must be an nn.Module"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_before_the_model_runs(change: dict, message: str) -> None:
    class Watched(Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Watched.calls += 1
            return super().forward(x)

    arguments = {"model": Watched(3, 5), "inputs": X, "labels": Y} | change
    with pytest.raises(InputError, match=message):
        find_min_adversarial(**arguments)
    assert Watched.calls <= 1  # one input, to learn the number of classes


@pytest.mark.parametrize(
    "answer",
    [lambda x: (x, x), lambda x: x[:, 0], lambda x: x[:, :1], lambda x: x.argmax(1, keepdim=True), lambda x: x[None]],
    ids=["tuple", "rank", "one class", "integers", "rank 3"],
)
def test_a_model_that_gives_no_logits_is_refused(answer) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor):
            return answer(x)

    with pytest.raises(InputError, match=r"model must be a map to logits \[N, K\]"):
        find_min_adversarial(Odd(), X, Y)
