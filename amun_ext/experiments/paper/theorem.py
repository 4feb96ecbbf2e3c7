"""Theorem 4.1 measured: on a smooth convex model, where all of its constants can be computed, and on the network.

One step of gradient descent on D + (x_adv, y_adv), at the rate 1/beta, takes the original weights to theta'. With
theta_u, which never saw (x, y), the theorem bounds |theta' - theta_u|^2 by |theta_o - theta_u|^2 + 2/beta (L delta - C)
if theta_o and theta_u have almost no loss. Without that its proof still gives, for every convex model,

    |theta' - theta_u|^2 <= |theta_o - theta_u|^2 + (2/beta) (R(theta_u) - R(theta')).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amun_ext.experiments.comparison import statistic
from amun_ext.experiments.lab import Lab
from amun_ext.experiments.results import Cell, Experiment, Results, scatter, table
from amun_ext.experiments.scales import Scale
from amun_ext.models import predict
from amun_ext.report.parts import Block, Figures, Heading
from amun_ext.search import find_min_adversarial

SAMPLES = 200  # of the convex model's training set
FORGOTTEN = 20  # of these, each by itself
STEPS = 200  # of L-BFGS


def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The summed cross-entropy of multinomial logistic regression: weights [K, d + 1], features [N, d + 1]."""
    return F.cross_entropy(x @ theta.T, y, reduction="sum")


def smoothness(x: Tensor) -> float:
    """beta of `loss`: the Hessian of a sample is (diag(p) - p p^T) (x) x x^T, whose first factor is at most 1/2."""
    return 0.5 * float(torch.linalg.matrix_norm(x, 2)) ** 2


def trained(x: Tensor, y: Tensor, classes: int) -> Tensor:
    """Weights near the minimum of `loss`, from zero."""
    theta = torch.zeros(classes, x.shape[1], dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([theta], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(theta, x, y)
        value.backward()
        return value

    optimizer.step(closure)
    return theta.detach()


def features(images: Tensor) -> Tensor:
    """[N, d + 1] float64, the last one for the bias."""
    flat = images.flatten(1).double()
    return torch.cat([flat, flat.new_ones(len(flat), 1)], 1)


def terms(x: Tensor, y: Tensor, row: int, original: Tensor, adversarial: Tensor, wrong: int) -> dict[str, float]:
    """All of the theorem for one forgotten row of x [N, d + 1], and its adversarial example [d + 1] with its label."""
    kept = torch.arange(len(x)) != row
    unseen = trained(x[kept], y[kept], len(original))
    all_x, all_y = torch.cat([x, adversarial[None]]), torch.cat([y, y.new_tensor([wrong])])
    beta, theta = smoothness(all_x), original.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(theta, all_x, all_y), theta)
    moved = original - gradient / beta

    def of(weights: Tensor, at: Tensor, label: int) -> float:
        return float(loss(weights, at[None], y.new_tensor([label])))

    label = int(y[row])
    c = of(original, adversarial, label) + of(moved, adversarial, wrong)
    c -= of(unseen, x[row], label) + of(unseen, adversarial, wrong)
    lipschitz = math.sqrt(2) * float(torch.linalg.matrix_norm(original[:, :-1], 2))  # of the loss in the input
    delta = float((adversarial - x[row]).norm())
    before, after = (float((weights - unseen).square().sum()) for weights in (original, moved))
    step = 2 / beta * float(loss(unseen, all_x, all_y) - loss(moved, all_x, all_y))
    return {
        "distance before": before,
        "distance after": after,
        "bound of the proof": before + step,
        "bound of the theorem": before + 2 / beta * (lipschitz * delta - c),
        "L delta": lipschitz * delta,
        "C": c,
        "2/beta": 2 / beta,
        "loss of the original": float(loss(original, x, y)) / len(x),
    }


def measured(lab: Lab, *, what: str, model: int, subset: int, run: int) -> dict[str, Any]:
    """Lists, a value for each forgotten sample: of the convex model, or what the network has of the theorem."""
    return _convex(lab, model) if what == "convex" else _network(lab, model, subset, run)


def _convex(lab: Lab, seed: int) -> dict[str, Any]:
    order = torch.randperm(len(lab.splits.train), generator=torch.Generator().manual_seed(seed), device="cpu")
    images, labels = (part.cpu() for part in lab.splits.train[order[:SAMPLES]])
    x, classes = features(images), len(lab.splits.classes)
    original = trained(x, labels, classes)
    last = nn.Linear(x.shape[1] - 1, classes).double()
    with torch.no_grad():
        last.weight.copy_(original[:, :-1])
        last.bias.copy_(original[:, -1])
    network = nn.Sequential(nn.Flatten(), last)
    count = min(FORGOTTEN, len(x) // 10)
    found = find_min_adversarial(network, images[:count].double(), labels[:count], method="ddn")
    points = features(found.images)
    rows = [
        terms(x, labels, row, original, points[row], int(found.labels[row]))
        for row in found.found.nonzero()[:, 0].tolist()
    ]
    return {name: [each[name] for each in rows] for name in rows[0]}


def _network(lab: Lab, model: int, subset: int, run: int) -> dict[str, Any]:
    fraction = min(lab.scale.fractions)
    forgotten, original = lab.sets(model, subset, fraction), lab.original(model)
    found = lab.examples(model, forgotten.forget).to("cpu")
    config = lab.config("amun", True, fraction)
    unlearned = config.unlearn(original, forgotten.forget, forgotten.retain, adversarial=found, seed=run)
    retrained = lab.retrained(model, subset, run, fraction)
    images, labels = (part.cpu() for part in forgotten.forget.tensors)

    def of(network: nn.Module, at: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(predict(network, at).double(), label, reduction="none")

    true, false = of(original, found.images, labels), of(unlearned, found.images, found.labels)
    c = true + false - of(retrained, images, labels) - of(retrained, found.images, found.labels)
    rise = (true - of(original, images, labels)) / found.distance.double()
    rows = found.found & (found.distance > 0)
    values = {"delta": found.distance.double(), "loss rise / delta": rise, "rise": rise * found.distance, "C": c}
    return {name: each[rows].tolist() for name, each in values.items()}


def _cells(scale: Scale) -> list[Cell]:
    return [{"what": what, **draw} for draw in scale.draws if draw["run"] == 0 for what in ("convex", "network")]


def _pooled(results: Results, name: str, what: str) -> list[float]:
    return [value for each in results.of(name, what=what) for value in each]


def _blocks(results: Results) -> Sequence[Block]:
    bounds = ("bound of the proof", "bound of the theorem")
    names = ("distance before", "distance after", *bounds, "L delta", "C", "2/beta")
    values = {name: _pooled(results, name, "convex") for name in names}
    holds = {
        f"% within the {bound}": statistic(
            [
                100.0 * (true <= most * (1 + 1e-9))
                for true, most in zip(values["distance after"], values[bound], strict=True)
            ]
        )
        for bound in bounds
    }
    rows = {name: {"value": statistic(of)} for name, of in values.items()}
    gained = [after - before for before, after in zip(values[names[0]], values[names[1]], strict=True)]
    slack = [bound - after for bound, after in zip(values[bounds[0]], values[names[1]], strict=True)]
    rows |= {"after - before": {"value": statistic(gained)}, "slack of the proof's bound": {"value": statistic(slack)}}
    rows |= {name: {"value": of} for name, of in holds.items()}
    rows["% where L delta outweighs |C|"] = {
        "value": statistic([100.0 * (a > abs(c)) for a, c in zip(values["L delta"], values["C"], strict=True)])
    }
    pairs = list(zip(values["distance after"], values["bound of the proof"], strict=True))
    figure = scatter(
        "The bound of the proof against the true distance",
        "A point for each forgotten sample of the convex model; none may be below the dashed line.",
        pairs,
        "|theta' - theta_u|^2",
        "bound",
    )
    network = {
        name: {"value": statistic(_pooled(results, name, "network"))}
        for name in ("delta", "loss rise / delta", "rise", "C")
    }
    return [
        Heading("Multinomial logistic regression"),
        Figures([figure]),
        table("convex", "over forgotten samples", rows, digits=4),
        Heading("The network, as a diagnostic"),
        table("network", "over forgotten samples", network),
    ]


THEOREM41 = Experiment(
    "Theorem 4.1: the bound against the true distance",
    "One step on the adversarial example leads within a bound of the weights that never saw the sample; the bound is "
    "tighter the closer the example is.",
    _cells,
    measured,
    _blocks,
)
