"""Packages that add methods and attacks by entry points: a file and a row each, as the package's own."""

import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from method_tools import line, samples
from torch import nn

from amun_ext import InputError, cli, data, find_min_adversarial, unlearn
from amun_ext.data.load import DATASETS
from amun_ext.plugins import PluginTable
from amun_ext.search import ATTACKS
from amun_ext.search.attacks import Attack
from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS, UnlearningMethod

MODULE = """
import torch
from torch.utils.data import TensorDataset

from amun_ext.data import Splits
from amun_ext.search import Iterate
from amun_ext.search.attacks import Attack
from amun_ext.training import DataPart, Pass, Recipe, fit
from amun_ext.unlearning import METHODS, UnlearningMethod

KNOWN = [*METHODS]  # the table can be read while the package is loaded


def relearn(model, forget, retain, run, *, power=1.0, recipe=Recipe(epochs=2, lr=0.01)):
    fit(model, [Pass([DataPart(retain)])], recipe, run, settings=power, description="relearn")


def half_way(it: Iterate):
    return it.x + it.grad * (0.5 * it.margin.clamp(min=0.1) / it.grad.flatten(1).square().sum(1))[:, None]


def spots(root, download):
    images = torch.eye(4).view(4, 1, 2, 2)
    return Splits(*[TensorDataset(images, torch.tensor([0, 1, 0, 1]))] * 2, ("a", "b"))


ROW = UnlearningMethod(relearn, "Relearn", "fine-tuning by another name", needs_retain=True)
ATTACK = Attack(loss="margin", last_loss="margin", options={"steps": 30}, constants={}, rule=half_way)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch):
    """A package `relearning` with these entry points, and the tables as they are when it is there."""

    def installed(*entries: str, module: str = MODULE, name: str = "relearning") -> Path:
        site, info = tmp_path / "site", tmp_path / f"site/{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text(module)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        groups = {"methods": [], "attacks": [], "datasets": []}
        for entry in entries:
            group, _, line = entry.partition(": ")
            groups[group].append(line)
        text = "".join(f"[amun_ext.{group}]\n" + "\n".join(lines) + "\n" for group, lines in groups.items())
        (info / "entry_points.txt").write_text(text)
        monkeypatch.syspath_prepend(site)
        for table in (METHODS, ATTACKS, DATASETS):
            monkeypatch.setattr(table, "read", None)
        return site

    yield installed
    sys.modules.pop("relearning", None)
    importlib.invalidate_caches()


BOTH = ("methods: relearn = relearning:ROW", "attacks: half-way = relearning:ATTACK")


def test_it_is_a_data_set_like_others(install) -> None:
    install(
        "datasets: spots = relearning:spots", "datasets: digits = relearning:spots", "datasets: no = relearning:ROW"
    )
    with pytest.warns(RuntimeWarning) as warned:
        assert [*DATASETS][-1] == "spots"
    assert [str(each.message).split(" of ")[0] for each in warned] == [
        "amun_ext.datasets: digits",
        "amun_ext.datasets: no",
    ]
    assert data.load("spots").classes == ("a", "b")


def test_it_is_a_method_and_an_attack_like_others(install) -> None:
    install(*BOTH)
    assert [*METHODS][-1] == "relearn"
    assert [*ATTACKS][-1] == "half-way"
    assert set(sys.modules["relearning"].KNOWN) == {*METHODS} - {"relearn"}
    torch.manual_seed(1)
    model = line()
    forget, retain = samples(model, 5), samples(model, 9)
    result, again = (unlearn(model, forget, retain, method=name) for name in ("relearn", "ft"))
    assert not torch.equal(result.weight, model.weight)
    assert not torch.equal(result.weight, again.weight)
    with pytest.raises(InputError, match=r"^retain must be given"):
        unlearn(model, forget, method="relearn")
    with pytest.raises(InputError, match=r"^gamma must be left out"):
        unlearn(model, forget, retain, method="relearn", gamma=1)
    found = find_min_adversarial(model, *forget.tensors, method="half-way")
    assert found.found.all()
    recipe = Recipe(epochs=1, lr=0.1)
    by_name = unlearn(model, forget, search="half-way", recipe=recipe)
    assert torch.equal(by_name.weight, unlearn(model, forget, adversarial=found, recipe=recipe).weight)


def test_it_is_in_the_command_line_and_its_tables(install, digits_checkpoint, tmp_path, capsys) -> None:
    install(*BOTH)
    common = ("--model", str(digits_checkpoint), "--data", "digits", "--fraction", "0.05")
    out = tmp_path / "out"
    assert (
        cli.main(["compare", *common, "--methods", "relearn", "--seeds", "1", "--epochs", "1", "--out", str(out)]) == 0
    )
    assert "\nRelearn " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["forget", "--help"])
    told = capsys.readouterr().out
    assert "relearn" in told
    assert "half-way" in told


@pytest.mark.filterwarnings("default::RuntimeWarning")
def test_the_command_line_says_in_one_line_what_is_left_out(install, tmp_path, capsys) -> None:
    install("methods: relearn = relearning:ROW", module="raise OSError")
    command = ["forget", "--model", "a", "--data", "digits", "--ids", "1", "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--method", "relearn"]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning == "amun: warning: amun_ext.methods: relearn of the package relearning is left out: OSError: "
    assert error.startswith("amun: error: method must be one of")


@pytest.mark.parametrize(
    ("entry", "module", "reason"),
    [
        ("methods: ft = relearning:ROW", MODULE, "exists already"),
        ("methods: relearn = relearning:ROW", "raise OSError('no\\nlicence')", "OSError: no"),
        ("methods: relearn = relearning:NOTHING", MODULE, "AttributeError"),
        ("methods: relearn = relearning:relearn", MODULE, "UnlearningMethod, got function"),
        ("methods: relearn = relearning:ROW", MODULE.replace("recipe=Recipe(epochs=2, lr=0.01)", "epochs=2"), "recipe"),
        ("attacks: ddn = relearning:ATTACK", MODULE, "exists already"),
        ("attacks: far = relearning:ATTACK", MODULE.replace('"steps": 30', '"speed": 30'), "speed"),
        ("attacks: far = relearning:ATTACK", MODULE.replace('loss="margin"', 'loss="squared"'), "squared"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_a_warning(install, entry: str, module: str, reason: str) -> None:
    install(entry, module=module)
    table, name = (METHODS if entry.startswith("methods") else ATTACKS), entry.split()[1]
    own = table.own.get(name)
    with pytest.warns(RuntimeWarning, match=f"{name} of the package relearning is left out: .*{reason}") as caught:
        assert table.get(name) is own
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [*table] == [*table.own]  # it is said once


def test_of_two_packages_with_one_name_the_second_is_left_out(install) -> None:
    install(BOTH[0])
    install(BOTH[0].replace("relearning", "another"), name="another")
    with pytest.warns(RuntimeWarning, match="is left out: the name exists already"):
        assert "relearn" in METHODS
    sys.modules.pop("another", None)


def test_nothing_is_imported_before_a_table_is_read(install) -> None:
    site = install(*BOTH)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import amun_ext, amun_ext.cli.main; "
        "assert 'relearning' not in sys.modules; from amun_ext.unlearning import METHODS; assert 'relearn' in METHODS"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rows_say_what_they_must_be() -> None:
    for function in (lambda model, forget, run: None, lambda model, forget, retain, run, *, recipe: None):
        with pytest.raises(InputError, match=r"^function must be"):
            UnlearningMethod(function, "a", "b")
    with pytest.raises(InputError, match=r"^rule must be"):
        Attack(loss="margin", last_loss="margin", options={}, constants={}, rule="step")


def test_a_table_can_be_changed_and_read_by_threads() -> None:
    table = PluginTable("amun_ext.nothing", nn.Module, {"a": nn.Identity()})
    table["b"] = nn.Identity()
    assert [*table] == ["a", "b"]
    del table["b"]
    assert (len(table), "b" in table) == (1, False)
