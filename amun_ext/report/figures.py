"""Figures of a page: plots as SVG in the colours of the page, light and dark, and images as PNG.

matplotlib takes a second to import, so it is imported where something is drawn.
"""

import base64
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amun_ext.report.parts import Figure, Mark

BINS = 36
SERIES = 10  # colours --series-0 to --series-9 of style.css, which repeat after that
MARKERS = dict(zip("osD^vP<>ph*X", "●■◆▲▼✚◀▶⬟⬢★✖", strict=True))  # of matplotlib, and the same shape in a key
SWATCH = 28, 12  # units
DASHES = ((), (4.0, 1.6), (1.2, 1.2), (6.0, 1.6, 1.2, 1.6))  # lengths in multiples of the line's width
# A plot is drawn in the first of these colours, which are then replaced by the second, the variables of style.css.
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
SETS = {
    "forget": Mark("forget", "forget"),
    "test": Mark("test", "test", (4, 1.5)),
    "retain": Mark("retain", "retain", filled=True),
}


def svg(salt: str, draw: Callable[[Any], None], size: tuple[float, float] = (4.2, 2.9)) -> str:
    """What `draw` plots on its axes, in the colours of the page. Figures of one page need different `salt`s for ids."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": salt}):
        figure = Canvas(figsize=size, layout="constrained")
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


def mark(index: int, name: str) -> Mark:
    """The mark of series `index`."""
    return Mark(name, f"series-{index % SERIES}", DASHES[index % len(DASHES)])


def line(of: Mark) -> dict[str, Any]:
    """The arguments of matplotlib for a mark."""
    return {"color": COLOURS[of.colour][0], "linestyle": (0, tuple(of.dashes)) if of.dashes else "-"}


def swatch(of: Mark) -> str:
    """A mark as it stands before its name in a key, SWATCH in size, in the colours of the page."""
    colour, (width, height) = f"var(--{of.colour})", SWATCH
    if of.points:
        drawn = f'<text x="14" y="10" text-anchor="middle" font-size="12" fill="{colour}">{of.points}</text>'
    elif of.filled:
        drawn = f'<path d="M2 1H26V11H2Z" fill="{colour}" opacity=".5"/>'
    else:
        dashes = " ".join(f"{2.4 * length:g}" for length in of.dashes)
        drawn = f'<path d="M0 6H28" stroke="{colour}" stroke-width="2.4" stroke-dasharray="{dashes or "none"}"/>'
    return f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" aria-hidden="true">{drawn}</svg>'


def histograms(
    scores: Mapping[str, Mapping[str, NDArray[np.float64]]], *, normals: bool = False
) -> dict[str, Callable[[], str]]:
    """One SVG per row of `scores` (row -> forget, retain, test -> log-odds [N]), all on the same axes.

    Heights are percent of the set; the outermost bars include the 0.5 % of values beyond each end of the axis.
    `normals` adds a normal of the same mean and deviation for the forget and the test set, as in the paper's figure 3.
    """
    low, high = np.quantile(
        np.concatenate([values for row in scores.values() for values in row.values()]), [0.005, 0.995]
    )
    edges = np.linspace(low, max(high, low + 1.0), BINS + 1)
    shares = {row: {name: _shares(values, edges) for name, values in sets.items()} for row, sets in scores.items()}
    top = 1.05 * max(float(share.max()) for sets in shares.values() for share in sets.values())

    def drawn(row: str) -> Callable[[], str]:
        def draw(axes: Any) -> None:
            for name in ("forget", "test") if normals else ():
                axes.plot(*_normal(scores[row][name], edges), color=COLOURS[name][0], linewidth=1.0, alpha=0.8)
            axes.stairs(shares[row]["retain"], edges, fill=True, color=COLOURS["retain"][0], alpha=0.45)
            axes.stairs(shares[row]["test"], edges, linewidth=1.6, **line(SETS["test"]))
            axes.stairs(shares[row]["forget"], edges, linewidth=2.0, **line(SETS["forget"]))
            axes.axvline(0.0, color=INK, linewidth=0.6, alpha=0.5)
            axes.set(xlim=(edges[0], edges[-1]), ylim=(0.0, top))
            axes.set(xlabel="log-odds of the true class", ylabel="% of the set")

        return lambda: svg(row, draw)

    return {row: drawn(row) for row in scores}


def _shares(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return 100.0 * counts / len(values)


def _normal(values: NDArray[np.float64], edges: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """The normal density, in percent per bar."""
    at, spread = np.linspace(edges[0], edges[-1], 200), max(float(values.std()), 1e-12)
    density = np.exp(-(((at - values.mean()) / spread) ** 2) / 2) / (spread * np.sqrt(2 * np.pi))
    return at, 100.0 * density * (edges[1] - edges[0])


def amplification(differences: Sequence[NDArray[np.float32]]) -> int:
    """The factor by which differences of images are enlarged, so that the median one uses the whole grey scale.

    Larger differences are clipped, so that smaller ones stay visible.
    """
    typical = float(np.median([np.abs(difference).max() for difference in differences]))
    return max(1, round(0.5 / typical)) if typical else 1


def png(image: NDArray[np.float32]) -> bytes:
    """`image` [C, H, W] in [0, 1] as a PNG file: colour if C is 3, else the mean of its channels in grey."""
    from matplotlib.image import imsave

    pixels = image.transpose(1, 2, 0) if len(image) == 3 else np.repeat(image.mean(axis=0)[..., None], 3, axis=2)
    encoded = io.BytesIO()
    imsave(encoded, np.clip(pixels, 0.0, 1.0), format="png")
    return encoded.getvalue()


def png_uri(image: NDArray[np.float32]) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode("ascii")


def standalone(figure: Figure, key: Sequence[Mark]) -> str:
    """A figure as a file that needs no page: its title above, its key and what is about it below."""
    picture = figure.draw()
    found = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', picture)
    assert found is not None
    width, height = map(float, found.groups())
    texts, y = [], 0.0
    for line_of_title in textwrap.wrap(figure.title, int(width / 6)):
        y += 13
        texts.append(f'<text x="4" y="{y}" font-weight="bold">{escape(line_of_title)}</text>')
    inside = picture.replace(found[0], f'y="{y + 6}" width="{width}" height="{height}"', 1)
    x, y = 4.0, y + height + 12
    for each in key:
        taken = SWATCH[0] + 4 + 6.4 * len(each.name)
        if x > 4 and x + taken > width:
            x, y = 4.0, y + 14
        name = f'<text x="{SWATCH[0] + 4}" y="9.5">{escape(each.name)}</text>'
        texts.append(f'<g transform="translate({x:g} {y:g})">{swatch(each)}{name}</g>')
        x += taken + 10
    y += 16 if key else 0
    for line_about in textwrap.wrap(figure.about, int(width / 4.8)):
        y += 11
        texts.append(f'<text x="4" y="{y:g}" font-size="9">{escape(line_about)}</text>')
    shape = f'width="{width}pt" height="{y + 6:g}pt" viewBox="0 0 {width} {y + 6:g}"'
    return in_light_colours(
        f'<svg xmlns="http://www.w3.org/2000/svg" {shape} font-family="DejaVu Sans, sans-serif" font-size="10" '
        f'fill="currentColor"><rect width="100%" height="100%" fill="#fff"/>\n{"".join(texts)}\n{inside}</svg>\n'
    )


def in_light_colours(picture: str) -> str:
    """An SVG in the page's light colours, for places without the page's style."""
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    colours = dict(reversed(re.findall(r"--([\w-]+): (#\w+)", style)))  # the first of each name
    return re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]], picture).replace(
        "currentColor", colours["ink"]
    )
