"""Find identical images under different row numbers: they must be forgotten together."""

from collections.abc import Iterable

from torch import Tensor
from torch.utils.data import TensorDataset

from amun_ext.data.images import hashes_of, row_hashes


def find_duplicates(forget: TensorDataset, retain: TensorDataset | Iterable[Tensor]) -> list[tuple[int, int]]:
    """Pairs (forget row, retain row) of equal inputs, whatever their labels and floating-point types."""
    rows = {known: row for row, known in enumerate(hashes_of(forget).tolist())}
    others: Iterable[bytes]
    if isinstance(retain, TensorDataset):
        others = hashes_of(retain).tolist()
    else:
        others = (row_hashes(each[None])[0].item() for each in retain)
    return [(rows[known], row) for row, known in enumerate(others) if known in rows]
