"""Pictures for the pages: histograms as SVG that takes the page's colours, images as PNG in a data URI."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from amun_ext.evaluation.markup import SERIES

BINS = 36
# matplotlib wants colours, the page wants its own in light and dark: draw in these, then put the page's in their place.
COLOURS = {
    "ink": ("#010101", "currentColor"),
    "retain": ("#010102", "var(--retain)"),
    "test": ("#010103", "var(--test)"),
    "forget": ("#010104", "var(--forget)"),
    **{f"series-{index}": (f"#0102{index:02x}", f"var(--series-{index})") for index in range(SERIES)},
}
INK = COLOURS["ink"][0]
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
}


def svg(salt: str, draw: Callable[[Any], None], size: tuple[float, float] = (4.2, 2.9)) -> str:
    """The picture that `draw` makes on the axes it is given, in the page's colours.

    A `salt` of its own keeps the ids inside each picture apart from those of the others on the same page.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": salt}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        drawn = io.StringIO()
        figure.savefig(
            drawn, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    picture = drawn.getvalue()
    picture = picture[picture.index("<svg") :]
    for placeholder, colour in COLOURS.values():
        picture = picture.replace(placeholder, colour)
    return picture


def histograms(scores: Mapping[str, Mapping[str, NDArray[np.float64]]], *, normals: bool = False) -> dict[str, str]:
    """One SVG per row of `scores` (row -> forget, retain, test -> log-odds [N]), all on the same axes.

    Heights are percent of the set; the outermost bars hold the 0.5 % at either end that would stretch the axis.
    `normals` adds a normal of the same mean and deviation for the forget and the test set, as in the paper's figure 3.
    """
    low, high = np.quantile(
        np.concatenate([values for row in scores.values() for values in row.values()]), [0.005, 0.995]
    )
    edges = np.linspace(low, max(high, low + 1.0), BINS + 1)
    shares = {row: {name: _shares(values, edges) for name, values in sets.items()} for row, sets in scores.items()}
    top = 1.05 * max(float(share.max()) for sets in shares.values() for share in sets.values())
    return {row: _histogram(row, sets, edges, top, scores[row] if normals else {}) for row, sets in shares.items()}


def _shares(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return 100.0 * counts / len(values)


def _histogram(
    row: str,
    shares: Mapping[str, NDArray[np.float64]],
    edges: NDArray[np.float64],
    top: float,
    fitted: Mapping[str, NDArray[np.float64]],
) -> str:
    def draw(axes: Any) -> None:
        for name in {"forget", "test"} & fitted.keys():
            axes.plot(*_normal(fitted[name], edges), color=COLOURS[name][0], linewidth=1.0, alpha=0.8)
        axes.stairs(shares["retain"], edges, fill=True, color=COLOURS["retain"][0], alpha=0.45)
        axes.stairs(shares["test"], edges, color=COLOURS["test"][0], linewidth=1.6, linestyle=(0, (4, 1.5)))
        axes.stairs(shares["forget"], edges, color=COLOURS["forget"][0], linewidth=2.0)
        axes.axvline(0.0, color=INK, linewidth=0.6, alpha=0.5)
        axes.set(
            xlim=(edges[0], edges[-1]), ylim=(0.0, top), xlabel="log-odds of the true class", ylabel="% of the set"
        )

    return svg(row, draw)


def _normal(values: NDArray[np.float64], edges: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """The curve, as percent in a bar."""
    at, spread = np.linspace(edges[0], edges[-1], 200), max(float(values.std()), 1e-12)
    density = np.exp(-(((at - values.mean()) / spread) ** 2) / 2) / (spread * np.sqrt(2 * np.pi))
    return at, 100.0 * density * (edges[1] - edges[0])


def amplification(differences: Sequence[NDArray[np.float32]]) -> int:
    """By how much to enlarge differences of images so that the median one fills the grey scale from its middle on.

    The farthest ones are clipped rather than the closest ones invisible.
    """
    typical = float(np.median([np.abs(difference).max() for difference in differences]))
    return max(1, round(0.5 / typical)) if typical else 1


def png_uri(image: NDArray[np.float32]) -> str:
    """A data URI of `image` [C, H, W] in [0, 1]: colour if C is 3, else the grey mean of its channels."""
    pixels = image.transpose(1, 2, 0) if len(image) == 3 else np.repeat(image.mean(axis=0)[..., None], 3, axis=2)
    encoded = io.BytesIO()
    imsave(encoded, np.clip(pixels, 0.0, 1.0), format="png")
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")
