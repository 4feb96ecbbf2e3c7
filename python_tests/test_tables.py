"""Tables and documents of results: the same numbers as text, Markdown, CSV, LaTeX, pandas and HTML."""

import csv
import io
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from page_tools import Page

from amun_ext import InputError
from amun_ext.report import html, parts
from amun_ext.report.tables import Column, Row, Table, interval, spread, value, word

MODELS = Table(
    "models",
    "model",
    [Column("UA"), Column("FT AUC"), Column("gap"), Column("remark", words=True)],
    [
        Row("D_R & D_A", [value(75.04), interval(50.0, 40.26, 60.0), spread(1 / 3, 0.25, 2), word("100 % | ok")]),
        Row("retrain", [value(math.nan), interval(51.0, math.nan, math.nan), spread(0.5, math.nan, 2), word("")]),
    ],
    marked="retrain",
)
ATTACKS = Table(
    "attacks",
    "model",
    [Column("AUC")],
    [Row("before", [value(60)], "RMIA"), Row("after", [value(50)], "RMIA"), Row("before", [value(55)], "LiRA")],
    groups_of="attack",
)
TRIALS = Table("trials", "trial", [Column("lr")], [Row("0", [value(0.5)])], folded=True)


class Example(parts.Result):
    def document(self) -> parts.Document:
        return parts.Document(
            "An example",
            [
                parts.Paragraph("something is wrong.", lead="Warning:"),
                parts.Heading("Models"),
                MODELS,
                parts.Glossary({"UA": "accuracy", "FT AUC": "forget against test"}),
                parts.Heading("Pictures"),
                parts.Figures([parts.Figure("a <figure>", lambda: "<svg></svg>")]),
                parts.Images([([[parts.Picture("secret", lambda: "data:x", below=["is"])]], "one")], "Images", "two"),
                parts.Heading("Attacks"),
                ATTACKS,
                TRIALS,
                parts.Facts({"recipe": {"lr": 0.1, "augment": None}, "ids": [1, 2, 3, 5, 9, 10], "empty": []}),
            ],
        )


class TestTable:
    def test_csv_has_all_digits_and_nothing_where_there_is_no_number(self) -> None:
        first, second = csv.DictReader(io.StringIO(MODELS.to_csv()))
        assert float(first["gap"]) == 1 / 3
        assert (first["FT AUC low"], first["FT AUC high"], first["gap sd"]) == ("40.26", "60.0", "0.25")
        assert first["model"] == "D_R & D_A"
        assert [second[name] for name in ("UA", "FT AUC", "FT AUC low", "gap sd")] == ["", "51.0", "", ""]
        assert [row["attack"] for row in csv.DictReader(io.StringIO(ATTACKS.to_csv()))] == ["RMIA", "RMIA", "LiRA"]

    def test_latex_is_escaped_and_grouped(self) -> None:
        made = MODELS.to_latex()
        assert "\\begin{tabular}{lrrrl}\n\\toprule\nmodel & UA & FT AUC & gap & remark \\\\\n\\midrule\n" in made
        assert r"D\_R \& D\_A & 75.0 & 50.0 [40.3, 60.0] & 0.33 $\pm$ 0.25 & 100 \% | ok \\" in made
        assert made.endswith("\\bottomrule\n\\end{tabular}\n")
        assert ATTACKS.to_latex().count(r"\multicolumn{2}{l}{\emph{") == 2

    def test_text_is_aligned(self) -> None:
        assert MODELS.to_text() == [
            "model        UA             FT AUC          gap  remark",
            "-----------------------------------------------------------",
            "D_R & D_A  75.0  50.0 [40.3, 60.0]  0.33 ± 0.25  100 % | ok",
            "retrain       -               51.0         0.50",
        ]
        assert ATTACKS.to_text()[2:] == ["RMIA", "  before  60.0", "  after   50.0", "LiRA", "  before  55.0"]

    def test_markdown_keeps_its_columns(self) -> None:
        head, rule, first, _ = MODELS.to_markdown().splitlines()
        assert (head.count("|"), rule) == (6, "| --- | ---: | ---: | ---: | --- |")
        assert "100 % \\| ok" in first
        assert "| **LiRA** |  |" in ATTACKS.to_markdown()

    def test_a_data_frame_has_the_records(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))
        assert MODELS.to_dataframe() == MODELS.records()
        assert ATTACKS.records()[2] == {"attack": "LiRA", "model": "before", "AUC": 55}

    def test_names_the_missing_package(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(InputError, match="needs pandas"):
            MODELS.to_dataframe()


class TestResult:
    def test_exports_the_main_table_by_default(self, tmp_path) -> None:
        result = Example()
        assert result.to_csv() == MODELS.to_csv()
        assert result.to_latex(tmp_path / "a.tex", table="attacks") == (tmp_path / "a.tex").read_text()
        with pytest.raises(InputError, match="table must be one of models, attacks, trials, got 'x'"):
            result.to_csv(table="x")
        names = result.write_tables(tmp_path)
        assert names == [f"{name}.{kind}" for name in ("models", "attacks", "trials") for kind in ("csv", "tex")]
        assert (tmp_path / "trials.csv").read_text() == "trial,lr\n0,0.5\n"

    def test_text_has_headings_only_above_shown_blocks(self) -> None:
        text = Example().to_text()
        assert text.startswith("Warning: something is wrong.\n\nModels\n\nmodel ")
        assert "UA      accuracy\nFT AUC  forget against test" in text
        assert not {"Pictures", "Images", "trial", "lr"} & {*text.split()}

    def test_markdown(self) -> None:
        made = Example().to_markdown()
        assert made.startswith("## An example\n\n**Warning:** something is wrong.\n\n### Models\n\n| model |")
        assert "- UA: accuracy\n" in made
        assert "Pictures" not in made

    def test_page(self, tmp_path) -> None:
        Example().to_html(tmp_path / "a.html")
        source = (tmp_path / "a.html").read_text()
        page = Page(source)
        assert not page.open
        assert "a &lt;figure&gt;" in source
        assert "data:x" not in source
        assert source.count('<tr class="group">') == 2
        assert source.count('<tr class="baseline">') == 1
        assert '<th scope="rowgroup" rowspan="2">recipe</th><th scope="row">lr</th><td>0.1</td>' in source
        assert "<td>1-3, 5, 9, 10</td>" in source
        Example().to_html(tmp_path / "a.html", with_images=True)
        assert 'src="data:x"' in (tmp_path / "a.html").read_text()


@pytest.mark.parametrize(
    ("fact", "told"),
    [(None, "none"), (True, "yes"), (0.05, "0.05"), ([], "none"), ([4, 2, 3], "4, 2, 3"), ({"a": [1]}, "a 1")],
)
def test_facts_in_words(fact, told) -> None:
    assert html.in_words(fact) == told


def test_a_long_list_is_cut() -> None:
    assert html.in_words([*range(0, 2000, 2)]).endswith(", ... (1000 in all)")
    assert len(html.in_words([*range(0, 2000, 2)])) < 430


def test_the_report_package_imports_no_result() -> None:
    """It is a leaf: what results are made of imports it, not the other way round."""
    sources = [path.read_text() for path in Path(html.__file__).parent.glob("*.py")]
    known = {name for source in sources for name in re.findall(r"(?:from|import) amun_ext\.(\w+)", source)}
    assert known == {"report", "validation", "files"}
