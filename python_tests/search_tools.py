"""What the tests of the search share: models whose answers are known, and what holds for every result."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset

from amun_ext import AdversarialSet
from amun_ext.search import ATTACKS, Iterate

SCALES = (0.1, 1.0, 20.0, 120.0, 1000.0)
LOSSES = ("cross_entropy", "margin")


def unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.flatten(1).norm(dim=1).view(-1, *[1] * (vectors.dim() - 1))


def plain_ddn(step: Iterate) -> Tensor:
    """Decoupled direction and norm as its paper has it, but for the first radius; a row without a gradient is NaN."""
    first = 2 * step.margin / step.grad.flatten(1).norm(dim=1)
    step.eps = torch.where(step.step == 0, first, step.eps * torch.where(step.adversarial, 0.9, 1.1)).to(step.eps)
    length = step.eps.view(-1, *[1] * (step.x.dim() - 1))
    return step.inputs + length * unit(step.x - step.inputs + length * unit(step.grad))


ALL = {name: name for name in ATTACKS} | {"a rule": plain_ddn}
may_run_out = pytest.mark.filterwarnings("ignore:.*their gradient is zero")  # in a corner of the box, say
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
    """The same as far as a search can promise, for inputs that no seed of a run changes (`task`, `problem`).

    A batch of another size or order rounds the logits otherwise, and beside a kink of the model or where two classes
    are equally close that leads a search elsewhere: three of 100 samples at most.
    """
    assert torch.equal(one.found, other.found)
    found = one.found
    same = (one.labels == other.labels) & torch.isclose(one.eps, other.eps, rtol=0.02, atol=1e-6)
    assert same.double().mean() >= 0.97
    quantiles = torch.tensor([0.1, 0.5, 0.9], dtype=one.distance.dtype)
    torch.testing.assert_close(
        one.distance[found].quantile(quantiles), other.distance[found].quantile(quantiles), rtol=0.02, atol=1e-6
    )


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


class Pairs(Dataset):
    def __init__(self, *items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


class Around(nn.Module):
    """A model around another, as users have them; `forward` of each kind answers as the inner one does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


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


class Restless(Linear):
    """With noise that never sleeps, what was adversarial once need not be so again."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 3 * torch.randn(len(x), 3)


# A search whose results go to a file, and whose model writes down which rows it has seen.
COUNT, CHUNK = 72, 16


class RowNet(nn.Module):
    """Two layers that look at all elements of an image but the last, which is its row / COUNT and so never moves."""

    def __init__(self, features: int = 12, seen: Path | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features - 1, 16, bias=False), nn.Tanh(), nn.Linear(16, 4, bias=False)
        )  # odd: opposite to an image there is another class
        self.register_buffer("mean", torch.full((features - 1,), 0.5), persistent=False)
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.seen is not None:
            with self.seen.open("a") as file:
                file.write(" ".join(str(round(float(row) * COUNT)) for row in x[:, -1]) + "\n")
        logits: Tensor = 8 * self.layers(x[:, :-1] - self.mean)
        return logits


def rows_seen(path: Path) -> set[int]:
    return {int(row) for row in path.read_text().split()}


def problem(**options: object) -> tuple[RowNet, Tensor, Tensor]:
    """A model, COUNT images that it is right about, and their labels: always the same ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RowNet(**options)
        images = torch.rand(COUNT, 3, 4)
    images[:, -1, -1] = torch.arange(COUNT) / COUNT
    quiet, model.seen = model.seen, None
    labels = model(images).argmax(1)
    model.seen = quiet
    return model, images, labels


def rows_done(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return int((file.get_tensor("grad_evals") >= 0).sum())
