"""The pages: their Python runs as it stands, only with fewer epochs; links lead somewhere; tables are filled."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from amun_ext import data, models
from amun_ext.cli import parser
from amun_ext.training import DataPart, Pass, Recipe, fit

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
WITH_CODE = [page for page in PAGES if "```python" in page.read_text()]
RESULTS = {  # page -> files that its code writes
    "README.md": ("adversarial.safetensors", "audit/audit.html"),
    "docs/guides/search.md": ("adversarial.safetensors", "examples.safetensors"),
    "docs/guides/unlearning.md": ("report.html",),
    "docs/guides/audit.md": ("audit/audit.json",),
}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "original.safetensors"
    model = models.build("small-cnn", num_classes=10, in_channels=1)
    fit(model, [Pass([DataPart(data.load("fashion-mnist-mini").train)])], Recipe(epochs=6, lr=0.05, batch_size=64))
    models.save_checkpoint(path, model, {})
    return path


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_runs(page, checkpoint, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("amun-demo").mkdir()
    Path("amun-demo/original.safetensors").symlink_to(checkpoint)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)
    code = re.sub(r"epochs=\d+", "epochs=1", "\n".join(blocks))
    exec(compile(code, name_of(page), "exec"), {})
    for result in RESULTS.get(name_of(page), ()):
        assert Path(result).exists(), result


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere_and_tables_are_filled(page) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    for path in re.findall(r"`((?:amun_ext|benchmarks|csrc|docs|examples|python_tests)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
    for name, block in re.findall(r"<!-- (?!end)([\w /]+) -->\n(.*?)<!-- end -->", text, flags=re.S):
        assert block.count("|") > 10 or name == "gpu/paper", name  # not measured yet


def test_the_readme_is_short() -> None:
    assert len(PAGES[0].read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_options_exist(page) -> None:
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^ {4}amun (.+)$", text, flags=re.M):
        arguments = shlex.split(line.replace("*", "").partition("#")[0])
        if "--help" not in arguments:
            parser().parse_args(arguments)
    commands = next(each for each in parser()._actions if isinstance(each.choices, dict)).choices.values()
    known = {flag for command in commands for flag in command._option_string_actions}
    if "docs/guides" in name_of(page):
        assert set(re.findall(r"`(--[a-z-]+)", text)) <= known


def test_the_page_of_the_command_line_has_every_option() -> None:
    page = runpy.run_path(str(ROOT / "docs/hooks.py"))["commands"]()
    commands = next(each for each in parser()._actions if isinstance(each.choices, dict)).choices
    for name, command in commands.items():
        section = page.partition(f"## amun {name}\n")[2].partition("\n## ")[0]
        for flag in set(command._option_string_actions) - {"-h", "--help"}:
            assert f"`{flag}" in section, (name, flag)


def test_figures_are_in_a_block_that_markdown_leaves_as_it_is() -> None:
    figures = runpy.run_path(str(ROOT / "docs/hooks.py"))["chain_figures"]()
    assert figures.count('<div class="figure">\n<svg ') == figures.count("xmlns:xlink=") == 4  # swatches have none


def test_the_page_of_examples_has_every_script() -> None:
    page = (ROOT / "docs/guides/examples.md").read_text()
    scripts = [path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").glob("*.py")]
    assert sorted(re.findall(r"^--8<--\n(.+)\n--8<--$", page, flags=re.M)) == sorted(scripts)
