"""Why AMUN without the retain set falls short of retraining: learning rates, epochs, BatchNorm and more images."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

from amun_ext.deletion.request import ORIGINAL, RETRAIN
from amun_ext.experiments.comparison import NOOP, Statistic, statistic
from amun_ext.experiments.lab import Lab
from amun_ext.experiments.results import SIZE, Cell, Experiment, Results, marks, table
from amun_ext.experiments.scales import Scale
from amun_ext.metrics.measures import MEASURES, gap
from amun_ext.models.reinitialise import deep_copy
from amun_ext.report.figures import INK, line, svg
from amun_ext.report.parts import Block, Figure, Figures, Heading, Mark, Paragraph
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.unlearning.ablations import ablation_set
from amun_ext.validation import InputError

LRS = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
AFTER = (1, 2, 5, 10, 20, 50)  # epochs
STABLE = 1e-2  # of more images only rates up to this, on D_A alone: elsewhere nothing is close to retraining
BATCH_NORM = ("train", "frozen")
SETS = ("D_A", "D_F with D_A")
FRACTION = 0.1
FIXED = {"*": Mark("Retrain", "ink", points="★"), "o": Mark(ORIGINAL, "ink", points="●")}  # by matplotlib's marker
NAMES = tuple(each.name for each in MEASURES if each.in_gap)


def fine_tuned_without_retain(
    lab: Lab,
    *,
    images: int,
    model: int,
    subset: int,
    run: int,
    method: str | None = None,
    lr: float = 0.0,
    batch_norm: str = "",
    data: str = "",
) -> dict[str, Any]:
    """UA, RA, TA and FT AUC after the epochs of AFTER, as lists; or with a method those of its model."""
    lab = _with_images(lab, images)
    forgotten = lab.sets(model, subset, FRACTION)
    ids = forgotten.ids.tolist()
    if method is not None:
        network = lab.original(model) if method == NOOP else lab.retrained(model, subset, run, FRACTION)
        return {name: [value] for name, value in lab.in_gap(network, ids).items()}
    network, examples = deep_copy(lab.original(model)), lab.examples(model, forgotten.forget)
    adversarial = ablation_set("Adv", forgotten.forget, examples, num_classes=len(lab.splits.classes))
    parts = [DataPart(adversarial, augment=False)] + ([DataPart(forgotten.forget)] if data == SETS[1] else [])
    after = _after(lab.scale, images)
    ours, steps = lab.recipe(), list[Mapping[str, float]]()
    recipe = Recipe(after[-1], lr, batch_size=ours.batch_size, augment=ours.augment, batch_norm=batch_norm)

    def look(epoch: Any) -> None:
        if epoch.number in after:
            steps.append(lab.in_gap(network, ids))

    with suppress(FloatingPointError, InputError):  # diverged: what was before counts
        fit(network, [Pass(parts)], recipe, RunOptions(seed=run, on_epoch=look))
    return {name: [step[name] for step in steps] for name in NAMES}


@lru_cache(maxsize=1)
def _with_images(lab: Lab, images: int) -> Lab:
    """The same with a draw of this size of the scale's larger data."""
    assert lab.scale.larger is not None
    data, tested = lab.scale.larger
    return replace(lab, scale=replace(lab.scale, data=data, images=(images, tested)))


def _after(scale: Scale, images: int) -> list[int]:
    """Fewer epochs on more images, so that the steps are about as many."""
    most = 5 * scale.epochs * min(scale.sizes) / images
    return [count for count in AFTER if count <= max(most, scale.epochs / 2, 1)]


def _cells(scale: Scale) -> list[Cell]:
    rows: list[Cell] = [{"method": name} for name in (RETRAIN, NOOP)]
    rows += [{"lr": lr, "batch_norm": how, "data": data} for data in SETS for how in BATCH_NORM for lr in LRS]
    draws = [draw for draw in scale.draws if draw["model"] < 2 and draw["subset"] == draw["run"] == 0]
    return [
        {"images": images, **draw, **row}
        for images in scale.sizes
        for draw in draws
        for row in rows
        if images == min(scale.sizes) or (row.get("lr", 0) <= STABLE and row.get("data") != SETS[1])
    ]


def _blocks(results: Results) -> list[Block]:
    options = [{"data": data, "batch_norm": how} for data in SETS for how in BATCH_NORM]
    key = marks([f"{each['data']}, BatchNorm {each['batch_norm']}" for each in options], points="●")
    figures, blocks = list[Figure](), list[Block]()
    for images in results.each("images"):
        fixed = {
            name: _at(results, 0, images=images, method=method)
            for name, method in (("Retrain", RETRAIN), (ORIGINAL, NOOP))
        }
        goal = {name: fixed["Retrain"][name].mean for name in NAMES}
        tried = [
            ({**each, "lr": lr}, step, _at(results, step, images=images, **each, lr=lr))
            for each in options
            for lr in LRS
            for step in range(min(map(len, results.of("UA", images=images, **each, lr=lr)), default=0))
        ]

        def far(row: Mapping[str, Statistic], goal: Mapping[str, float] = goal) -> float:
            return gap({name: of.mean for name, of in row.items()}, goal)

        forgotten = [each for each in tried if each[2]["UA"].mean <= goal["UA"]]
        chosen = {
            "AMUN, least gap": min(tried, key=lambda each: far(each[2])),
            **({"AMUN, UA of retraining": min(forgotten, key=lambda each: far(each[2]))} if forgotten else {}),
        }
        rows = fixed | {name: row for name, (_, _, row) in chosen.items()}
        shown = {name: {**row, "gap": Statistic(far(row), float("nan"), row["UA"].n)} for name, row in rows.items()}
        how = "; ".join(
            f"{name}: {option['data']}, BatchNorm {option['batch_norm']}, lr {option['lr']:g}, {AFTER[step]} epochs"
            for name, (option, step, _) in chosen.items()
        )
        blocks += [Heading(f"{images:,} images"), table(f"images-{images}", "model", shown), Paragraph(f"{how}.")]
        figures.append(_figure(f"{images:,} images", tried, fixed, key))
    return [Figures(figures, key=[*key.values(), *FIXED.values()]), *blocks]


def _at(results: Results, step: int, **where: Any) -> dict[str, Statistic]:
    return {name: statistic([run[step] for run in results.of(name, **where)]) for name in NAMES}


def _figure(title: str, tried: Sequence[Any], fixed: Mapping[str, Mapping[str, Statistic]], key: Any) -> Figure:
    def draw(axes: Any) -> None:
        for name, of in key.items():
            rows = [row for option, _, row in tried if name == f"{option['data']}, BatchNorm {option['batch_norm']}"]
            points = [(row["UA"].mean, row["RA"].mean) for row in rows]
            if points:
                axes.plot(*zip(*points, strict=True), ".", color=line(of)["color"])
        for sign, row in zip(FIXED, fixed.values(), strict=True):
            axes.plot(row["UA"].mean, row["RA"].mean, sign, color=INK, markersize=9)
        axes.set(xlabel="UA: % of the forget set", ylabel="RA: % of the retain set")

    about = "A dot for each learning rate and number of epochs."
    return Figure(title, lambda: svg(title, draw, SIZE), about, label=title)


WITHOUT_RETAIN = Experiment(
    "Without the retain set: learning rates, epochs, BatchNorm and the number of images",
    "Without the retain set AMUN comes close to retraining.",
    _cells,
    fine_tuned_without_retain,
    _blocks,
)
