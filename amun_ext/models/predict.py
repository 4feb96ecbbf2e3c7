"""The logits of a model, and its accuracy."""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext.models.state import eval_mode, logits_of, placement
from amun_ext.validation import check_labels, require


@torch.no_grad()
def predict(model: nn.Module, images: Tensor | TensorDataset, batch_size: int = 512, *, name: str = "model") -> Tensor:
    """Logits [N, K], float32 on the CPU, of `images` [N, ...], which travel to the model's device batch by batch.

    Of a dataset of (image, label) the images are taken.

    The model answers in eval mode and is left as it was, each module in its own mode, also when it fails.

    Raises InputError, calling the model `name`, when it does not answer with finite logits [N, K], K >= 2.
    """
    require(len(images) > 0, "images", "a non-empty batch", "no images")
    require(batch_size > 0, "batch_size", "positive", batch_size)
    first, *_ = images[:1] if isinstance(images, TensorDataset) else (images[:1],)
    device, dtype = placement(model, first)
    logits = []
    with eval_mode(model):
        for start in range(0, len(images), batch_size):
            rows = images[start : start + batch_size]
            batch = rows if isinstance(rows, Tensor) else rows[0]
            answer = logits_of(model, batch.to(device, dtype, copy=True))
            require(isinstance(answer, Tensor), name, "a model that returns a tensor", type(answer).__name__)
            fits = answer.dim() == 2 and answer.shape[0] == len(batch) and answer.shape[1] >= 2
            expected = f"a model that returns logits ({len(batch)}, K), K >= 2, for {len(batch)} images"
            require(fits, name, expected, f"shape {tuple(answer.shape)}")
            logits.append(answer.float().cpu())
    answers = torch.cat(logits)
    broken = answers.numel() - int(answers.isfinite().sum())
    require(broken == 0, name, "a model that returns finite logits", f"{broken} of {answers.numel()} not finite")
    return answers


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Percent of rows of `logits` [N, K] whose largest entry is at `labels` [N]; 0 to 100."""
    require(logits.dim() == 2 and logits.numel() > 0, "logits", "[N, K], not empty", f"shape {tuple(logits.shape)}")
    check_labels("labels", labels, len(logits), logits.shape[1])
    return 100.0 * float((logits.argmax(dim=1) == labels).double().mean())
