"""The guide on deletion requests, run as it is printed: its code and its commands, in their order."""

import json
import re
import shlex
from pathlib import Path

import pytest
from page_tools import CHROMIUM, in_browser

from amun_ext import cli

PAGE = Path(__file__).parents[1] / "docs/guides/requests.md"


@pytest.mark.slow
def test_every_step_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("PIL")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    steps = re.findall(r"```python\n([\s\S]*?)```|^ {4}amun (.+)$", PAGE.read_text(), flags=re.M)
    assert len(steps) >= 11
    for code, command in steps:
        if code:
            exec(compile(code, str(PAGE), "exec"), names)
        else:
            assert cli.main([*shlex.split(command), "--quiet"]) == 0, capsys.readouterr().err
    removed = {Path(each["file"]).as_posix() for each in json.loads(Path("purged.json").read_text())["removed"]}
    assert removed >= {"original.safetensors", "first/model.safetensors", "again/model.safetensors"}
    assert (tmp_path / "second/model.safetensors").exists()
    assert cli.main(["ledger", "verify", "second"]) == 0
    if CHROMIUM is not None:
        check_page(tmp_path / "first/record.html")


def check_page(page: Path) -> None:
    """It fits a desktop and a phone, and is light or dark as the user has it."""
    shown = {(width, dark): in_browser(page, width, dark) for width in (1280, 400) for dark in (False, True)}
    papers = {dark: paper for (_, dark), (_, _, paper) in shown.items()}
    assert papers[False] != papers[True]
    for (width, dark), (wide, text, paper) in shown.items():
        assert (wide, paper) == (width, papers[dark])
        assert "Record of a deletion request" in text
