"""Compare adversarial searches on the same samples: distance of their examples, and cost."""

import contextlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amun_ext.defaults import CURVE_SAMPLES, SEARCHED
from amun_ext.distributed import entered_by_first_rank
from amun_ext.files import atomic_folder, atomic_path, no_link, to_jsonable, workplace, write_json
from amun_ext.info import versions
from amun_ext.models import predict
from amun_ext.progress import progress_bar
from amun_ext.report import Document, Result
from amun_ext.search import ATTACKS, AdversarialSet, find_min_adversarial
from amun_ext.validation import require

# Numbers of steps that a curve has beside the method's own. In ffgsm they cost no gradients.
CURVE_STEPS: dict[str, tuple[int, ...]] = {"pgd": (5, 10, 20), "ffgsm": ()}
OTHER_CURVES = (5, 10, 20, 40)
COLUMNS = {  # of the table, and the keys of a method in JSON: digits and explanation
    "n": (0, "samples that the model classifies correctly"),
    "found": (0, "samples of these with an adversarial example"),
    "mean": (3, "mean L2 distance of the examples found, in the units of the images; less is better"),
    "median": (3, "median distance over all n; a sample without an example counts as infinite"),
    "p95": (3, "95th percentile of the distance over all n, counted in the same way"),
    "gradients": (1, "mean number of gradients per sample; less is better"),
    "seconds": (1, "wall time of the search; a dash if the search was resumed"),
}


@dataclass(frozen=True)
class Common:
    """Options of `find_min_adversarial` that all methods share."""

    refine: int = 0
    quantize: int | None = None
    min_margin: float = 0.0
    precision: str | None = None


@dataclass(frozen=True, eq=False)
class SearchRun:
    """One method on some of the samples."""

    rows: Tensor  # [M] which of them
    result: AdversarialSet  # a row for each of these
    seconds: float  # NaN where a file had a part of the result already


@dataclass(frozen=True)
class Point:
    """What a number of steps costs and brings; None where a method has no steps."""

    steps: int | None
    gradients: float
    median: float


@dataclass(frozen=True, eq=False)
class Searches(Result):
    """The result of `compare`. Numbers that do not exist are NaN or infinite here, and null in JSON."""

    images: Tensor  # [N, C, H, W]
    labels: Tensor  # [N]
    ids: Tensor  # [N] numbers of the samples in their data set
    counted: Tensor  # [N] bool, False for those misclassified as they are, which are in no statistics
    runs: Mapping[str, SearchRun]  # method -> what its own settings gave, for all samples
    curves: Mapping[str, Sequence[Point]]  # method -> by gradients; one of them is that of its own settings
    common: Common
    classes: Sequence[str]  # names, or none
    facts: Mapping[str, object]

    def distances(self, method: str) -> NDArray[np.float64]:
        """Of the n samples that count; infinite where there is no example."""
        return _distances(self.runs[method], self.counted)

    @property
    def rows(self) -> dict[str, dict[str, float]]:
        """Method -> name in COLUMNS -> value."""
        return {method: _statistics(run, self.counted) for method, run in self.runs.items()}

    @property
    def missing(self) -> dict[str, list[int]]:
        """Method -> ids of the samples without an example, for methods that have such samples."""
        lacking = {method: self.ids[~run.result.found.cpu()].tolist() for method, run in self.runs.items()}
        return {method: ids for method, ids in lacking.items() if ids}

    @property
    def pair(self) -> tuple[str, str] | None:
        """The two methods to compare sample by sample: the paper's search with the closer one, or the first two."""
        first = ["pgd", "ddn"] if {"pgd", "ddn"} <= self.runs.keys() else [*self.runs]
        return (first[0], first[1]) if len(first) > 1 else None

    def closer(self, first: str, second: str) -> tuple[float, int]:
        """The percent of samples with two examples for which the second is closer; and the number of these samples."""
        one, other = self.distances(first), self.distances(second)
        both = np.isfinite(one) & np.isfinite(other)
        return 100.0 * float(np.mean((other < one)[both])) if both.any() else math.nan, int(both.sum())

    def settings(self, method: str) -> dict[str, object]:
        """The method's own, and those of all."""
        row = ATTACKS[method]
        own = {name: "estimate" if value is None else value for name, value in row.options.items()}
        own |= {"more_rounds": row.more_rounds} if row.more_rounds else {}
        loss = row.loss if row.loss == row.last_loss else f"{row.loss}, then {row.last_loss}"
        return {"loss": loss, **own, **asdict(self.common)}

    def document(self) -> Document:
        from amun_ext.experiments.searches_document import document

        return document(self)

    def left_out(self) -> str:
        """A sentence about the samples that are in no statistics."""
        wrong = int((~self.counted).sum())
        return f"The model misclassifies {wrong} of {len(self.counted)} samples; they are left out."

    def to_dict(self) -> dict[str, object]:
        """Everything but the images, as plain JSON values; `columns` explains the numbers of a method."""
        rows, missing = self.rows, self.missing
        methods = {
            method: {"settings": self.settings(method), **rows[method], "ids_without_example": missing.get(method, [])}
            for method in self.runs
        }
        curves = {method: [asdict(point) for point in points] for method, points in self.curves.items()}
        compared = None
        if self.pair is not None:
            percent, both = self.closer(*self.pair)
            compared = {"methods": self.pair, "both_found": both, "percent_second_closer": percent}
        content = {
            "samples": len(self.ids),
            "misclassified": self.ids[~self.counted].tolist(),
            "methods": methods,
            "curves": curves,
            "pair": compared,
            "columns": explanations(),
            "facts": self.facts,
            "ids": self.ids.tolist(),
        }
        return {key: to_jsonable(value) for key, value in content.items()}


def compare(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    methods: Sequence[str] = SEARCHED,
    *,
    common: Common | None = None,
    curves: bool = True,
    ids: Tensor | None = None,
    classes: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    facts: Mapping[str, object] | None = None,
    progress: bool = False,
) -> Searches:
    """Search the closest adversarial example of every image with each of `methods`, names in ATTACKS.

    images: [N, C, H, W] in [0, 1]. labels: [N]. curves: search up to 200 of them with other numbers of steps, too. ids:
    numbers of the samples in their data set, by default from 0 on. classes: names of all classes, or none. out: a
    folder for the examples, <method>.safetensors and curves/<method>-<steps>.safetensors; what it has of the same
    searches is not searched again. facts: what a reader should know. Raises as `find_min_adversarial`.
    """
    check_methods(methods)
    common, everything = common or Common(), torch.arange(len(images), device="cpu")
    right = predict(model, images).argmax(1) == labels.cpu()
    # Evenly spread, not the first: ids may come class by class.
    some = (
        torch.linspace(0, len(images) - 1, min(CURVE_SAMPLES, len(images)), device="cpu").round().long()
        if curves
        else everything
    )
    plan: list[tuple[str, int | None]] = [(method, None) for method in methods]
    plan += [(method, steps) for method in methods if curves for steps in _curve_steps(method)]
    if out is not None:
        no_link(Path(out) / "curves")
    runs: dict[tuple[str, int | None], SearchRun] = {}
    with (
        contextlib.nullcontext() if out is None else entered_by_first_rank(workplace(out, "search")),
        # Nothing of the bar is to be seen while the first search may still refuse what it is given.
        progress_bar(progress, plan, leave=False, unit="search", delay=0.5) as bar,
    ):
        for method, steps in bar:
            bar.set_description(method if steps is None else f"{method}, {steps} steps", refresh=bool(runs))
            path = None if out is None else Path(out) / _file(method, steps)
            how = {"method": method, "steps": steps, "out": path, "progress": progress, **asdict(common)}
            runs[method, steps] = _search(model, images, labels, everything if steps is None else some, how)
    unmoved = torch.stack([runs[method, None].result.distance.cpu() == 0 for method in methods]).any(0)
    counted = right & ~unmoved
    points = {key: _point(*key, run, counted, some) for key, run in runs.items()}
    return Searches(
        images=images,
        labels=labels.cpu(),
        ids=everything if ids is None else ids,
        counted=counted,
        runs={method: runs[method, None] for method in methods},
        curves={
            method: sorted((points[key] for key in plan if key[0] == method), key=lambda point: point.gradients)
            for method in methods
        },
        common=common,
        classes=classes,
        facts={**(facts or {}), "threads": torch.get_num_threads(), "versions": versions()},
    )


def write(searches: Searches, folder: Path) -> None:
    """searches.json and searches.html into `folder`."""
    with workplace(folder, "search") as place, atomic_folder(folder, place) as files:
        write_json(files / "searches.json", searches.to_dict())
        searches.to_html(files / "searches.html")


def write_png(searches: Searches, folder: Path) -> None:
    """METHOD-ID.png for each example: the image, the example, and what was changed, enlarged around grey."""
    from amun_ext.report.figures import amplification, png

    images = searches.images.detach().float().cpu()
    for method, run in searches.runs.items():
        found = run.result.found.cpu().nonzero()[:, 0]
        changes = run.result.images.float().cpu() - images
        factor = amplification([change.numpy() for change in changes[found]]) if len(found) else 1
        for row in found.tolist():
            shown = torch.cat([images[row], images[row] + changes[row], 0.5 + factor * changes[row]], dim=2)
            with atomic_path(folder / f"{method}-{int(searches.ids[row])}.png") as path:
                path.write_bytes(png(shown.numpy()))


def check_methods(methods: Sequence[str]) -> None:
    """InputError for names that are not in ATTACKS, named twice, or none at all."""
    unknown = [method for method in methods if method not in ATTACKS]
    actual = ", ".join(map(repr, unknown)) or "none"
    require(bool(methods) and not unknown, "methods", f"some of {', '.join(ATTACKS)}", actual)
    require(len(set(methods)) == len(methods), "methods", "different from each other", ", ".join(methods))


def explanations() -> dict[str, str]:
    """Of the columns, by name."""
    return {name: about for name, (_, about) in COLUMNS.items()}


def own_steps(method: str) -> int | None:
    """The default number of steps of the method."""
    steps = ATTACKS[method].options.get("steps")
    return None if steps is None else int(steps)


def _curve_steps(method: str) -> list[int]:
    own = own_steps(method)
    return [] if own is None else [steps for steps in CURVE_STEPS.get(method, OTHER_CURVES) if steps != own]


def _file(method: str, steps: int | None) -> str:
    return f"{method}.safetensors" if steps is None else f"curves/{method}-{steps}.safetensors"


def _search(model: nn.Module, images: Tensor, labels: Tensor, rows: Tensor, how: dict[str, Any]) -> SearchRun:
    if len(rows) < len(images):
        images, labels = images[rows], labels[rows]
    path: Path | None = how["out"]
    fresh = path is None or not [*path.parent.glob(f"{path.name}*")]  # also .partial, of a search that was stopped
    start = time.perf_counter()
    result = find_min_adversarial(model, images, labels, **how)
    seconds = time.perf_counter() - start
    if not fresh:
        require(_belongs(result, images, labels), "out", "a folder for searches of these samples", f"others in {path}")
    return SearchRun(rows, result, seconds if fresh else math.nan)


def _belongs(result: AdversarialSet, images: Tensor, labels: Tensor) -> bool:
    """Whether the examples are of these images: a file is known by the first of its samples only."""
    if not torch.equal(result.true_labels, labels.to(result.true_labels)):
        return False
    chunks = zip(result.images.split(1024), images.split(1024), strict=True)
    moved = torch.cat(
        [(found.float() - given.to(found.device).float()).flatten(1).norm(dim=1) for found, given in chunks]
    )
    close = torch.isclose(moved, result.distance.float(), rtol=1e-3, atol=1e-4)
    return bool((close | ~result.found).all())


def _distances(run: SearchRun, counted: Tensor) -> NDArray[np.float64]:
    distances: NDArray[np.float64] = run.result.distance.cpu()[counted[run.rows]].double().numpy()
    return distances


def _gradients(run: SearchRun, counted: Tensor) -> float:
    return float(run.result.grad_evals.cpu()[counted[run.rows]].double().mean())


def _quantile(distances: NDArray[np.float64], part: float) -> float:
    """One of the distances: between finite and infinite ones there is nothing."""
    return float(np.quantile(distances, part, method="inverted_cdf")) if len(distances) else math.nan


def _statistics(run: SearchRun, counted: Tensor) -> dict[str, float]:
    distances = _distances(run, counted)
    found = distances[np.isfinite(distances)]
    return {
        "n": len(distances),
        "found": len(found),
        "mean": float(found.mean()) if len(found) else math.nan,
        "median": _quantile(distances, 0.5),
        "p95": _quantile(distances, 0.95),
        "gradients": _gradients(run, counted),
        "seconds": run.seconds,
    }


def _point(method: str, steps: int | None, run: SearchRun, counted: Tensor, some: Tensor) -> Point:
    """Of the rows `some` [S], as all points of the curves."""
    counted = torch.zeros_like(counted).index_fill(0, some, True) & counted
    median = _quantile(_distances(run, counted), 0.5)
    return Point(own_steps(method) if steps is None else steps, _gradients(run, counted), median)
