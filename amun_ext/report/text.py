"""A document for a terminal: no pictures, lines that fit."""

import textwrap
from collections.abc import Mapping

from amun_ext.report.parts import Answer, Block, Document, Glossary, Heading, Items, Paragraph
from amun_ext.report.tables import Table

WIDTH = 100


def render(document: Document) -> str:
    """Its parts, a blank line between them; a heading only above something that is shown."""
    parts: list[list[str]] = []
    heading: list[list[str]] = []
    for block in document.blocks:
        if isinstance(block, Heading):
            heading = [[block.text]]
        elif lines := _lines(block):
            parts += [*heading, lines]
            heading = []
    return "\n\n".join("\n".join(line.rstrip() for line in part) for part in parts)


def _lines(block: Block) -> list[str]:
    match block:
        case Paragraph():
            return textwrap.wrap(f"{block.lead} {block.text}".strip(), WIDTH)
        case Answer():
            return textwrap.wrap(f"{block.answer}: {block.reason}", WIDTH)
        case Items():
            return [line for item in block.items for line in textwrap.wrap(item, WIDTH)]
        case Glossary():
            return [*[block.title] * bool(block.title), *legend(block.terms)]
        case Table(folded=False):
            return block.to_text()
    return []


def legend(terms: Mapping[str, str]) -> list[str]:
    """A line for each term and what it means."""
    width = max(map(len, terms), default=0)
    return [f"{term.ljust(width)}  {meaning}" for term, meaning in terms.items()]
