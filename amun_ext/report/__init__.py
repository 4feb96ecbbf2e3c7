"""Documents of parts and tables, and their rendering as text, Markdown, HTML, CSV, LaTeX and pandas."""

from amun_ext.report.parts import Document, Result
from amun_ext.report.tables import Table, number

__all__ = ["Document", "Result", "Table", "number"]
