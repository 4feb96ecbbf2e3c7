"""AdversarialSet: the results of a search, as a dataset and as a file."""

import os
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset

from amun_ext.files import write_tensors
from amun_ext.models.state import count_classes, eval_mode, logits_of, placement
from amun_ext.validation import InputError, check_integer, require

FORMAT = {"format": "amun_ext.AdversarialSet", "version": "1"}


class Transfer(NamedTuple):
    """The predictions of another model on the examples."""

    fooled: Tensor  # [N] bool, whether the other model's label is wrong too; False where no example was found
    labels: Tensor  # [N] int64, the other model's label of each image, -1 where a logit is NaN


@dataclass(frozen=True, eq=False)
class AdversarialSet(Dataset[tuple[Tensor, int]]):
    """Adversarial examples, a row for every input of the search.

    As a dataset it has only the found examples, as (image, wrong label): the row of a sample without an example has its
    own image and true label, which must not be trained on.

    Examples:
        >>> import torch
        >>> from amun_ext import find_min_adversarial
        >>> model = torch.nn.Linear(2, 2, bias=False)  # class 0 where the first number is the larger one
        >>> _ = model.load_state_dict({"weight": torch.eye(2)})
        >>> inputs, labels = torch.tensor([[0.9, 0.1], [0.2, 0.6]]), torch.tensor([0, 1])
        >>> result = find_min_adversarial(model, inputs, labels, method="ddn")
        >>> result.images.shape, result.found.tolist()
        (torch.Size([2, 2]), [True, True])
        >>> [wrong_label for image, wrong_label in result]
        [1, 0]
    """

    images: Tensor  # [N, ...] like the inputs; the input itself if no example was found
    labels: Tensor  # [N] int64, the model's label of `images`: wrong if found, otherwise the true one
    true_labels: Tensor  # [N] int64, of the inputs
    source_index: Tensor  # [N] int64, row of the input
    eps: Tensor  # [N] radius at which it was found; 0 for an input that was already misclassified
    distance: Tensor  # [N] L2 norm of image - input; inf if none was found
    grad_evals: Tensor  # [N] int32, gradients computed for the sample
    found: Tensor  # [N] bool

    @cached_property
    def _found_rows(self) -> list[int]:
        rows: list[int] = self.found.nonzero()[:, 0].tolist()
        return rows

    def __repr__(self) -> str:
        shape, median = tuple(self.images.shape), float("nan") if not len(self) else self.distance[self.found].median()
        return f"AdversarialSet({len(self)} of {shape[0]} found, images {shape}, median distance {float(median):.4g})"

    def __len__(self) -> int:
        return len(self._found_rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self._found_rows[index]
        return self.images[row], int(self.labels[row])

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    @torch.no_grad()
    def transfer(self, model: nn.Module, batch_size: int = 256) -> Transfer:
        """Which of the examples fool another model, and with which label (paper, appendix E.4).

        `model` maps inputs like `images` to logits [N, K]; it runs in eval mode and is left as it was. Compare the
        result's labels with `labels` to see whether both models predict the same class.

        Raises:
            InputError: the model does not fit the images, or has fewer classes than the true labels need.
        """
        require(isinstance(model, nn.Module), "model", "an nn.Module", type(model).__name__)
        batch_size = check_integer("batch_size", batch_size, 1)
        classes, needed = count_classes(model, self.images), int(self.true_labels.max()) + 1
        require(classes >= needed, "model", f"of at least {needed} classes", classes)
        device, dtype = placement(model, self.images)
        predicted = []
        with eval_mode(model):
            for x in self.images.split(batch_size):
                logits = logits_of(model, x.to(device, dtype, copy=True))  # a model may change its input in place
                predicted.append(logits.argmax(1).masked_fill(logits.isnan().any(1), -1))
        labels = torch.cat(predicted).to(self.labels.device)
        return Transfer(self.found & (labels != self.true_labels) & (labels >= 0), labels)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, completely or not at all."""
        write_tensors(path, {field.name: getattr(self, field.name).contiguous() for field in fields(self)}, FORMAT)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` or a search with `out` wrote, mapped into memory. InputError for any other file."""
        expected, name = "a file that AdversarialSet.save wrote", os.fspath(path)
        try:
            with safe_open(path, framework="pt") as file:
                require(FORMAT.items() <= (file.metadata() or {}).items(), "path", expected, name)
                return cls(**{field.name: file.get_tensor(field.name) for field in fields(cls)})
        except (SafetensorError, OSError) as error:
            raise InputError(f"path must be {expected}, got {name}: {error}") from error
