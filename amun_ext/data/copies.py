"""Equal images under different row numbers: forgetting one of them is forgetting none."""

import hashlib
from collections.abc import Iterable, Iterator

from torch import Tensor
from torch.utils.data import TensorDataset


def fingerprint(dataset: TensorDataset) -> str:
    """A hash of all inputs and labels in their order: equal only for the same data under the same row numbers."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in dataset.tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def digests(inputs: Iterable[Tensor], size: int = 16) -> Iterator[bytes]:
    """A hash of each input, whatever its floating-point type."""
    for row in inputs:
        same = row.detach().cpu().float() + 0.0  # -0.0 becomes 0.0
        yield hashlib.blake2b(same.contiguous().numpy().tobytes(), digest_size=size).digest()


def copies(forget: TensorDataset, retain: TensorDataset | Iterable[Tensor]) -> list[tuple[int, int]]:
    """Pairs (forget row, retain row) of equal inputs, whatever their labels and floating-point types."""

    rows = {digest: row for row, digest in enumerate(digests(forget.tensors[0]))}
    others = retain.tensors[0] if isinstance(retain, TensorDataset) else retain
    return [(rows[digest], row) for row, digest in enumerate(digests(others)) if digest in rows]
