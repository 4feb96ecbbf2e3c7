"""A document for a terminal: no pictures, lines that fit."""

import textwrap
from functools import partial

from amun_ext.report.parts import Answer, Block, Document, Glossary, Items, Paragraph
from amun_ext.report.tables import Table

WIDTH = 100
fill = partial(textwrap.fill, width=WIDTH)


def render(document: Document) -> str:
    return "\n\n".join(document.as_text(_text, str))


def _text(block: Block) -> str:
    match block:
        case Paragraph():
            return fill(f"{block.lead} {block.text}".strip())
        case Answer():
            return fill(f"{block.answer}: {block.reason}")
        case Items():
            return "\n".join(map(fill, block.items))
        case Glossary():
            width = max(map(len, block.terms), default=0)
            terms = [f"{term.ljust(width)}  {meaning}".rstrip() for term, meaning in block.terms.items()]
            return "\n".join([*[block.title] * bool(block.title), *terms])
        case Table(folded=False):
            return "\n".join(block.to_text())
    return ""
