"""At what size the paper's experiments run: data, network, trainings and number of repeats."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from amun_ext.recipe import PAPER_TRAINING, TRAINING, Recipe
from amun_ext.unlearning.config import load_tuned_options

PAPER_FINE_TUNING = 10  # epochs of every method (paper, appendix C)


@dataclass(frozen=True)
class Scale:
    """`repeats`: models, forget sets of each, runs of each. `references`: for RMIA; 0 for the confidence attack alone.

    `robust_references`: of networks trained by TRADES, whose steps cost nine plain ones; None for as many.

    `trials`: of `tune` for each method; 0 takes the methods' own options. `tuned`: the name of options that were tuned
    before, see `tuned_options`. `images`: of the training and of the test
    set, None for all.
    """

    data: str
    images: tuple[int, int] | None
    model: str
    width: int | None
    training: Recipe
    repeats: tuple[int, int, int]
    references: int
    trials: int
    epochs: int = PAPER_FINE_TUNING  # of fine-tuning
    ablation_epochs: int = 20
    request: float = 0.02  # share of the training set in each of the requests in a row
    requests: int = 5
    search: str = "pgd"
    fractions: tuple[float, ...] = (0.1, 0.5)
    tuned: str | None = None
    larger: tuple[str, int] | None = None  # data, and test images, of which `sizes` are numbers of training images
    sizes: tuple[int, ...] = ()
    robust_references: int | None = None

    def of_models(self, count: int | None) -> "Scale":
        """The same with another number of models."""
        return self if count is None else replace(self, repeats=(count, *self.repeats[1:]))

    def identity(self) -> dict[str, object]:
        """What decides a cell; how often it is repeated, and what other cells there are, does not."""
        unseen = ("repeats", "sizes", "robust_references")  # the last is `references` where it counts
        return {name: value for name, value in asdict(self).items() if name not in unseen}

    def tuned_options(self, fraction: float) -> Mapping[tuple[str, bool], Mapping[str, Any]]:
        """From the file of this size of request, if there is one."""
        path = Path(__file__).parent / f"paper/tuned-{self.tuned}-{fraction:g}.json"
        return load_tuned_options(path)[0] if path.exists() else {}

    @property
    def draws(self) -> list[dict[str, int]]:
        """The arguments of a measurement that say which of the repeats it is."""
        models, subsets, runs = map(range, self.repeats)
        return [
            {"model": model, "subset": subset, "run": run} for model in models for subset in subsets for run in runs
        ]


SCALES = {
    "smoke": Scale(
        "digits",
        (200, 100),
        "small-cnn",
        4,
        Recipe(epochs=5, lr=0.1, batch_size=20),
        (1, 1, 1),
        references=2,
        trials=0,
        epochs=1,
        ablation_epochs=2,
        search="ddn",
        requests=2,
        fractions=(0.1,),
        larger=("digits", 100),
        sizes=(200,),
    ),
    "small": Scale(
        "fashion-mnist-mini",
        None,
        "small-cnn",
        None,
        TRAINING,
        (3, 1, 1),
        references=8,
        trials=8,
        search="ddn",
        tuned="small",
        larger=("fashion-mnist", 3000),
        sizes=(2000, 10_000),
        robust_references=4,
    ),
    "paper": Scale(
        "cifar10",
        None,
        "resnet18-amun",
        None,
        PAPER_TRAINING,
        (3, 3, 3),
        references=128,
        trials=30,
        larger=("cifar10", 10_000),
        sizes=(50_000,),
    ),
    "tiny-imagenet": Scale(
        "tiny-imagenet",
        None,
        "vgg19",
        None,
        replace(PAPER_TRAINING, batch_size=256),
        (3, 3, 3),
        references=128,
        trials=30,
        fractions=(0.1,),
        larger=("tiny-imagenet", 10_000),
        sizes=(100_000,),
    ),
}
