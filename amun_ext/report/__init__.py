"""How results look: a document of parts and tables, and text, Markdown, HTML, CSV, LaTeX and pandas made from it."""

from amun_ext.report.parts import Document, Result
from amun_ext.report.tables import Table, number

__all__ = ["Document", "Result", "Table", "number"]
