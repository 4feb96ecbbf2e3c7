"""A document as Markdown, for a pull request: no pictures, the glossaries folded."""

from amun_ext.report.parts import Answer, Block, Document, Glossary, Items, Paragraph
from amun_ext.report.tables import Table


def render(document: Document) -> str:
    return "\n".join([f"## {document.title}\n", *document.as_text(_markdown, "### {}\n".format)])


def _markdown(block: Block) -> str:
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
