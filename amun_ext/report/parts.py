"""Documents and their parts, and `Result`, the class of results that have a document.

Text and Markdown leave out pictures and `Facts`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from amun_ext.files import write_json, write_text
from amun_ext.report.tables import Table
from amun_ext.validation import require

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str
    lead: str = ""  # in bold before the text
    soft: bool = False  # smaller


@dataclass(frozen=True)
class Items:
    items: Sequence[str]


@dataclass(frozen=True)
class Answer:
    """The main finding and its reason. tone: "good", "bad" or "unsure", for its colour."""

    answer: str
    reason: str
    tone: str


@dataclass(frozen=True)
class Glossary:
    """Terms and their meanings."""

    terms: Mapping[str, str]
    title: str = ""


@dataclass(frozen=True)
class Mark:
    """An entry of a key: the name and look of a line or point; for colours see `amun_ext.report.figures`."""

    name: str
    colour: str
    dashes: Sequence[float] = ()  # lengths in multiples of the line's width
    points: str = ""  # the character of a point, in place of a line
    filled: bool = False  # a bar, in place of a line


@dataclass(frozen=True)
class Figure:
    """draw: returns the SVG when the page is rendered. label: the text for screen readers."""

    title: str
    draw: Callable[[], str]
    about: str = ""
    more: str = ""  # behind the title
    label: str = ""


@dataclass(frozen=True)
class Figures:
    """key: of all of them, once on a page, and in the file of each."""

    figures: Sequence[Figure]
    about: str = ""
    wide: bool = False
    key: Sequence[Mark] = ()


@dataclass(frozen=True)
class Picture:
    """pixels: returns the image as a data URI when a page with images is rendered; None for text alone."""

    alt: str
    pixels: Callable[[], str] | None
    above: str = ""
    below: Sequence[str] = ()


@dataclass(frozen=True)
class Images:
    """Cards of rows of pictures, each with a caption. forgotten: shown only on a page `with_images`."""

    cards: Sequence[tuple[Sequence[Sequence[Picture]], str]]
    title: str
    about: str
    forgotten: bool = True


@dataclass(frozen=True)
class Facts:
    """Settings and provenance of the numbers; values may be mappings and lists."""

    entries: Mapping[str, object]


Block: TypeAlias = Heading | Paragraph | Items | Answer | Glossary | Figures | Images | Facts | Table


@dataclass(frozen=True)
class Document:
    title: str
    blocks: Sequence[Block]

    @property
    def tables(self) -> dict[str, Table]:
        """Name -> table, the main one first."""
        return {block.name: block for block in self.blocks if isinstance(block, Table)}

    def as_text(self, shown: Callable[[Block], str], heading: Callable[[str], str]) -> list[str]:
        """The text that `shown` returns for each block, without empty ones; a heading only above a block with text."""
        texts: list[str] = []
        above: list[str] = []
        for block in self.blocks:
            if isinstance(block, Heading):
                above = [heading(block.text)]
            elif text := shown(block):
                texts += [*above, text]
                above = []
        return texts


class Result:
    """A result with a document, which can be rendered, and whose tables can be exported."""

    def document(self) -> Document:
        raise NotImplementedError

    def to_dict(self) -> dict[str, object]:
        """The result as plain JSON values."""
        raise NotImplementedError

    def to_json(self, path: str | os.PathLike[str]) -> None:
        write_json(path, self.to_dict())

    def table(self, name: str | None = None) -> Table:
        """The table of that name, by default the main one."""
        tables = self.document().tables
        name = next(iter(tables)) if name is None else name
        require(name in tables, "table", f"one of {', '.join(tables)}", repr(name))
        return tables[name]

    def to_text(self) -> str:
        """For a terminal."""
        from amun_ext.report import text

        return text.render(self.document())

    def to_markdown(self) -> str:
        """For a pull request."""
        from amun_ext.report import markdown

        return markdown.render(self.document())

    def to_html(self, path: str | os.PathLike[str], *, with_images: bool = False) -> None:
        """One page that needs no other file and no network. `with_images`: it shows some of the forget images, so it
        must be deleted when they are."""
        from amun_ext.report import html

        write_text(path, html.render(self.document(), with_images))

    def to_csv(self, path: str | os.PathLike[str] | None = None, *, table: str | None = None) -> str:
        """A table, by default the main one, with all digits; also written to `path`."""
        return _written(path, self.table(table).to_csv())

    def to_latex(self, path: str | os.PathLike[str] | None = None, *, table: str | None = None) -> str:
        """A table, by default the main one, for a paper that loads booktabs; also written to `path`."""
        return _written(path, self.table(table).to_latex())

    def to_dataframe(self, table: str | None = None) -> pandas.DataFrame:
        """A table, by default the main one. InputError where pandas is not installed."""
        return self.table(table).to_dataframe()

    def write_tables(self, folder: str | os.PathLike[str]) -> list[str]:
        """All tables as <name>.csv and <name>.tex into `folder`; the names of the files."""
        made: dict[str, str] = {}
        for name, table in self.document().tables.items():
            made |= {f"{name}.csv": table.to_csv(), f"{name}.tex": table.to_latex()}
        for file, text in made.items():
            write_text(Path(folder) / file, text)
        return [*made]


def _written(path: str | os.PathLike[str] | None, text: str) -> str:
    if path is not None:
        write_text(path, text)
    return text
