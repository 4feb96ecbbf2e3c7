"""The README: its Python runs as it stands, only with fewer epochs; its links lead somewhere; its tables are filled."""

import re
from pathlib import Path

import pytest

from amun_ext import data, models
from amun_ext.training import Part, Pass, Recipe, fit

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md")


def test_readme_code_runs(tmp_path, monkeypatch, capsys) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(), flags=re.S)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    model = models.build("small-cnn", num_classes=10, in_channels=1)
    fit(model, [Pass([Part(data.load("fashion-mnist-mini").train)])], Recipe(epochs=6, lr=0.05, batch_size=64))
    models.save_checkpoint("amun-demo/original.safetensors", model, {})
    code = re.sub(r"epochs=\d+", "epochs=1", "\n".join(blocks))
    exec(compile(code, "README.md", "exec"), {})
    assert Path("report.html").exists()
    assert Path("adversarial.safetensors").exists()
    assert "AMUN without D_R" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere_and_tables_are_filled(page) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    for block in re.findall(r"<!-- (?!end)[\w ]+ -->\n(.*?)<!-- end -->", text, flags=re.S):
        assert block.count("|") > 10
