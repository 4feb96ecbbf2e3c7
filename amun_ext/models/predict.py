"""The logits of a model, and its accuracy."""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext.models.state import eval_mode, logits_of, placement
from amun_ext.tensor_checks import check_labels
from amun_ext.validation import require

BATCH_BYTES = 2**24  # of images


@torch.no_grad()
def predict(model: nn.Module, images: Tensor | TensorDataset, batch_size: int = 512, *, name: str = "model") -> Tensor:
    """Logits [N, K], float32 on the CPU, of images [N, ...] or of the images of a dataset of (image, label).

    The images are moved to the model's device batch by batch, at most 16 MiB of them at once. The model runs in eval
    mode and is left as it was.
    InputError, which calls the model `name`, unless it returns finite logits [N, K], K >= 2.
    """
    require(len(images) > 0, "images", "a non-empty batch", "no images")
    require(batch_size > 0, "batch_size", "positive", batch_size)
    first, *_ = images[:1] if isinstance(images, TensorDataset) else (images[:1],)
    batch_size = min(batch_size, max(1, BATCH_BYTES // first.nbytes))
    device, dtype = placement(model, first)
    logits = []
    with eval_mode(model):
        for start in range(0, len(images), batch_size):
            rows = images[start : start + batch_size]
            batch = rows if isinstance(rows, Tensor) else rows[0]
            output = logits_of(model, batch.to(device, dtype, copy=True))
            require(isinstance(output, Tensor), name, "a model that returns a tensor", type(output).__name__)
            fits = output.dim() == 2 and output.shape[0] == len(batch) and output.shape[1] >= 2
            expected = f"a model that returns logits ({len(batch)}, K), K >= 2, for {len(batch)} images"
            require(fits, name, expected, f"shape {tuple(output.shape)}")
            logits.append(output.float().cpu())
    result = torch.cat(logits)
    broken = result.numel() - int(result.isfinite().sum())
    expected = "a model that returns finite logits (after a training that diverged: lower lr)"
    require(broken == 0, name, expected, f"{broken} of {result.numel()} not finite")
    return result


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Percent of rows of `logits` [N, K] with the largest entry at `labels` [N]."""
    require(logits.dim() == 2 and logits.numel() > 0, "logits", "[N, K], not empty", f"shape {tuple(logits.shape)}")
    check_labels("labels", labels, len(logits), logits.shape[1])
    return 100.0 * float((logits.argmax(dim=1) == labels).double().mean())
