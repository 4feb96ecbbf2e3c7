"""Random labels (RL): teach wrong labels for the forget set (Golatkar et al. 2020). With a mask it is SalUn."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.data.images import stored
from amun_ext.models.state import count_classes
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.validation import require

RECIPE = Recipe(epochs=10, lr=0.01)
ORDERS = ("mixed", "sequential")


def random_label(
    model: nn.Module,
    forget: TensorDataset,
    retain: Dataset[Any] | None,
    run: RunOptions,
    *,
    true_label: bool = False,
    order: str = "mixed",
    recipe: Recipe = RECIPE,
) -> None:
    """Minimise the cross-entropy on D_F with random labels, drawn anew in every epoch, and on D_R, if it is there.

    Args:
        true_label: let the draw hit the true label as well, as the code of SalUn's authors does.
        order: "mixed" shuffles both sets together; "sequential" goes through all of D_F, then all of D_R.
    """
    require(isinstance(true_label, bool), "true_label", "True or False", repr(true_label))
    require(order in ORDERS, "order", f"one of {ORDERS}", repr(order))
    labels: Tensor = stored(forget)[1]
    classes = count_classes(model, forget[:2][0])

    def drawn(epoch: int) -> Tensor:
        # never the seed of the shuffling: labels would follow from a sample's place in its batch
        generator = torch.Generator().manual_seed((run.seed + 1) * 1_000_003 + epoch)
        if true_label:
            return torch.randint(classes, labels.shape, generator=generator, device="cpu")
        return (labels.cpu() + torch.randint(1, classes, labels.shape, generator=generator, device="cpu")) % classes

    parts = [DataPart(forget, labels=drawn)] + ([] if retain is None else [DataPart(retain)])
    passes = [Pass(parts)] if order == "mixed" else [Pass([part]) for part in parts]
    fit(model, passes, recipe, run, settings=true_label, description="RL")
