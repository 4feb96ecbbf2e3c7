"""A document as one HTML page, light or dark, without scripts, other files or network."""

import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from amun_ext.report.figures import swatch
from amun_ext.report.parts import Document, Images

if TYPE_CHECKING:
    import jinja2
    import markupsafe

SHOWN = 400  # characters of a list


def render(document: Document, with_images: bool = False) -> str:
    """The page; `with_images`: with the images of forgotten samples."""
    blocks = [
        block for block in document.blocks if not (isinstance(block, Images) and block.forgotten and not with_images)
    ]
    return _environment().get_template("page.html").render(title=document.title, blocks=blocks)


@cache
def _environment() -> "jinja2.Environment":
    import jinja2  # here, because most commands need no page

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("amun_ext.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.tests["kind"] = lambda block, name: type(block).__name__ == name
    made.filters |= {"fact": _fact, "swatch": swatch}
    return made


def _fact(value: object) -> "markupsafe.Markup":
    """`value` in words, for a page: of a digest only the first characters show until it has the focus."""
    import markupsafe

    digest = r'<span class="digest" tabindex="0" title="\g<0>">\g<0></span>'
    return markupsafe.Markup(re.sub("[0-9a-f]{32,}", digest, str(markupsafe.escape(in_words(value)))))


def in_words(value: object) -> str:
    """A fact as text: consecutive numbers as ranges, and only the beginning of a long list."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case Mapping():
            return ", ".join(f"{key} {in_words(entry)}" for key, entry in value.items())
        case list() | tuple():
            text = _ranges([in_words(entry) for entry in value]) or "none"
            return text if len(text) <= SHOWN else f"{text[:SHOWN].rpartition(', ')[0]}, ... ({len(value)} in all)"
    return str(value)


def _ranges(entries: list[str]) -> str:
    """3, 4, 5, 9 as 3-5, 9."""
    runs: list[list[str]] = []
    for entry in entries:
        follows = entry.isdecimal() and runs and runs[-1][-1].isdecimal() and int(runs[-1][-1]) + 1 == int(entry)
        if follows:
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs)
