"""A document as Markdown, for a pull request: no pictures, the glossaries folded."""

from amun_ext.report.parts import Answer, Block, Document, Glossary, Heading, Items, Paragraph
from amun_ext.report.tables import Table


def render(document: Document) -> str:
    parts, heading = [f"## {document.title}\n"], ""
    for block in document.blocks:
        if isinstance(block, Heading):
            heading = f"### {block.text}\n"
        elif shown := _shown(block):
            parts += [heading, shown]
            heading = ""
    return "\n".join(part for part in parts if part)


def _shown(block: Block) -> str:
    match block:
        case Paragraph():
            return f"**{block.lead}** {block.text}\n" if block.lead else f"{block.text}\n"
        case Answer():
            return f"{block.answer}: {block.reason}\n"
        case Items():
            return "".join(f"- {item}\n" for item in block.items)
        case Glossary():
            explained = "".join(f"- {term}: {meaning}\n" for term, meaning in block.terms.items())
            title = block.title or "What the names mean"
            return f"<details><summary>{title}</summary>\n\n{explained}\n</details>\n" if explained else ""
        case Table(folded=False):
            return block.to_markdown()
    return ""
