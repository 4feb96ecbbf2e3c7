"""Find copies of an image under other row numbers, identical or nearly so: they must be forgotten together."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from amun_ext.data.images import float_parts, hashes_of, row_hashes, stored, subset
from amun_ext.defaults import LARGE_IMAGE, LARGE_NEAR_COPY, NEAR_COPY
from amun_ext.validation import require

FREQUENCIES = 12  # of the cosine transform along each side: coarse shapes, which survive compression and resizing
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, by which libraries make a grey image of a coloured one


def find_duplicates(forget: TensorDataset, retain: TensorDataset | Iterable[Tensor]) -> list[tuple[int, int]]:
    """Pairs (forget row, retain row) of equal inputs, of any labels and floating-point types."""
    rows = {image_hash: row for row, image_hash in enumerate(hashes_of(forget).tolist())}
    others: Iterable[bytes]
    if isinstance(retain, TensorDataset):
        others = hashes_of(retain).tolist()
    else:
        others = (row_hashes(each[None])[0].item() for each in retain)
    return [(rows[image_hash], row) for row, image_hash in enumerate(others) if image_hash in rows]


def find_near_copies(data: TensorDataset, rows: Tensor, limit: float | None = None) -> list[tuple[int, int, float]]:
    """Triples (row, other row, distance) of the images `rows` and of all others of `data` below the distance `limit`.

    The distance is 1 - cosine of the low frequencies of a discrete cosine transform, without the mean, of the image in
    grey, as of perceptual hashes (Zauner 2010): 0 also for another size, brightness or contrast, about 1 for unrelated
    photos, 2 for a negative. An image of one colour has no near copy, nor have inputs that are no images [C, H, W].

    limit: by default 0.001 for images of less than 64 pixels, of which many look alike, and 0.05 for larger ones.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> images[2] = 0.8 * images[0] + 0.1
        >>> pairs = find_near_copies(TensorDataset(images, torch.zeros(3)), torch.tensor([0]))
        >>> [(row, other) for row, other, _ in pairs]
        [(0, 2)]
    """
    images = stored(data)[0]
    if len(images.shape) != 4:
        return []
    limit = (LARGE_NEAR_COPY if min(images.shape[2:]) >= LARGE_IMAGE else NEAR_COPY) if limit is None else limit
    require(0 <= limit <= 1, "duplicate distance", "a number from 0 to 1", limit)
    if limit == 0:
        return []
    own = torch.cat([_coarse(part) for part in float_parts(stored(subset(data, rows))[0])])
    found, first = [], 0
    for part in float_parts(images):
        distances = 1 - own @ _coarse(part).T
        for at, other in (distances < limit).nonzero().tolist():
            if int(rows[at]) != first + other:
                found.append((at, first + other, max(0.0, float(distances[at, other]))))
        first += len(part)
    return [(int(rows[at]), other, distance) for at, other, distance in sorted(found)]


def _coarse(images: Tensor) -> Tensor:
    """The low frequencies [N, K] without the mean, of length 1, or 0 for an image of one colour."""
    from scipy.fft import dctn  # a fifth of a second, which only this needs

    channels = images.shape[1]
    weights = torch.tensor(LUMA if channels == 3 else [1 / channels] * channels, device="cpu")
    grey = torch.einsum("nchw,c->nhw", images, weights)
    frequencies = dctn(grey.numpy(), axes=(1, 2), norm="ortho")[:, :FREQUENCIES, :FREQUENCIES]
    flat = torch.from_numpy(frequencies.copy()).flatten(1)[:, 1:]
    plain = flat.norm(dim=1, keepdim=True) <= 1e-3
    return torch.nn.functional.normalize(flat).masked_fill(plain, 0.0)
