"""Tables of results: cells with a text and their data, as text, Markdown, CSV, LaTeX and pandas."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amun_ext.validation import InputError

if TYPE_CHECKING:
    import pandas

LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"±": r"$\pm$", "\u00a0": "~", "<": r"\textless{}", ">": r"\textgreater{}"},
    }
)


def number(value: float, digits: int = 1, unit: str = "") -> str:
    """Fixed digits; a dash where there is no number."""
    return f"{value:.{digits}f}{unit}" if math.isfinite(value) else "-"


@dataclass(frozen=True)
class Cell:
    """The text that is shown, and its data: suffix of the column's name -> value."""

    text: str
    data: Mapping[str, float | str]


def word(text: str) -> Cell:
    return Cell(text, {"": text})


def value(of: float, digits: int = 1) -> Cell:
    return Cell(number(of, digits), {"": of})


def interval(of: float, low: float, high: float, digits: int = 1) -> Cell:
    """A value with its interval in brackets, where there is one."""
    known = not any(map(math.isnan, (of, low, high)))
    ends = f" [{number(low, digits)}, {number(high, digits)}]" if known else ""
    return Cell(number(of, digits) + ends, {"": of, " low": low, " high": high})


def spread(mean: float, deviation: float, digits: int = 1) -> Cell:
    """A mean and its standard deviation, where there is one."""
    ends = "" if math.isnan(deviation) else f" ± {number(deviation, digits)}"
    return Cell(number(mean, digits) + ends, {"": mean, " sd": deviation})


@dataclass(frozen=True)
class Column:
    name: str  # the heading
    words: bool = False  # aligned to the left; numbers to the right


@dataclass(frozen=True)
class Row:
    name: str
    cells: Sequence[Cell]  # as many as there are columns
    group: str = ""  # the heading above it and its neighbours


@dataclass(frozen=True)
class Table:
    """The row `marked` is highlighted; `of` and `groups_of` say what rows and groups are.

    folded: a long table, which text leaves out and a page shows on a click.
    """

    name: str
    of: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    marked: str | None = None
    groups_of: str = ""
    folded: bool = False

    @property
    def grouped(self) -> list[tuple[str, list[Row]]]:
        """Group -> its rows; one group without a name where there are none."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.group, []).append(row)
        return list(groups.items())

    def records(self) -> list[dict[str, float | str]]:
        """Each row as data. Intervals and deviations are further columns: " low", " high" and " sd"."""
        return [
            {
                **({self.groups_of: row.group} if self.groups_of else {}),
                self.of: row.name,
                **{
                    column.name + suffix: data
                    for column, cell in zip(self.columns, row.cells, strict=True)
                    for suffix, data in cell.data.items()
                },
            }
            for row in self.rows
        ]

    def to_csv(self) -> str:
        """All digits; an empty cell where there is no number."""
        records = self.records()
        names = list(dict.fromkeys(name for record in records for name in record))
        written = io.StringIO()
        writer = csv.DictWriter(written, names, lineterminator="\n")
        writer.writeheader()
        for record in records:
            writer.writerow({name: "" if data != data else data for name, data in record.items()})
        return written.getvalue()

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per row of the table. InputError where pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise InputError("to_dataframe() needs pandas: pip install pandas") from error
        return pandas.DataFrame(self.records())

    def to_latex(self) -> str:
        """A tabular for booktabs, with the numbers as they are shown."""
        kinds = "".join("l" if column.words else "r" for column in self.columns)
        lines = [f"\\begin{{tabular}}{{l{kinds}}}", r"\toprule", _latex([self.of, *self._names]), r"\midrule"]
        for group, rows in self.grouped:
            if group:
                head = rf"\multicolumn{{{1 + len(self.columns)}}}{{l}}{{\emph{{{group.translate(LATEX)}}}}} \\"
                lines += [r"\addlinespace", head]
            lines += [_latex([row.name, *(cell.text for cell in row.cells)]) for row in rows]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])

    def to_text(self) -> list[str]:
        """Aligned lines, with a rule below the headings."""
        grid = list(self._lines("  "))
        widths = [max(map(len, column)) for column in zip(*(line for line in grid if len(line) > 1), strict=True)]
        left = [True, *(column.words for column in self.columns)]
        shown = [
            "  ".join(
                cell.ljust(width) if words else cell.rjust(width)
                for cell, width, words in zip(line, widths, left, strict=False)
            ).rstrip()
            for line in grid
        ]
        return [shown[0], "-" * (sum(widths) + 2 * len(self.columns)), *shown[1:]]

    def to_markdown(self) -> str:
        head, *rows = [[cell.replace("|", "\\|") for cell in line] for line in self._lines()]
        rule = ["---", *("---" if column.words else "---:" for column in self.columns)]
        rows = [line if len(line) > 1 else [f"**{line[0]}**", *[""] * len(self.columns)] for line in rows]
        return "".join(f"| {' | '.join(line)} |\n" for line in [head, rule, *rows])

    @property
    def _names(self) -> list[str]:
        return [column.name for column in self.columns]

    def _lines(self, indent: str = "") -> Iterator[list[str]]:
        """The headings and the rows; a group begins with one cell, and its rows are indented."""
        yield [self.of, *self._names]
        for group, rows in self.grouped:
            if group:
                yield [group]
            for row in rows:
                yield [indent * bool(group) + row.name, *(cell.text for cell in row.cells)]


def _latex(cells: Sequence[str]) -> str:
    return " & ".join(cell.translate(LATEX) for cell in cells) + r" \\"
