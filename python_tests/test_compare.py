"""amun compare: every row in the table, every number from its cells, nothing made twice or taken for another."""

import dataclasses
import functools
import json
import math
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kill_tools import ended_at
from page_tools import Page
from torch import nn

from amun_ext import cli, data, evaluate, find_min_adversarial, models, tuning
from amun_ext.defaults import COMPARED
from amun_ext.deletion import forget_ids, split
from amun_ext.deletion.request import RETRAIN
from amun_ext.experiments import compare
from amun_ext.experiments.comparison import NEEDS, NOOP
from amun_ext.models import accuracy, predict
from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS
from amun_ext.unlearning.config import save_tuned_options

GAP = ("UA", "RA", "TA", "FT AUC")
SHORT = Recipe(epochs=1, lr=0.01)
SEARCH = "amun_ext.experiments.compare.find_min_adversarial"


@pytest.fixture(scope="module")
def original(digits_checkpoint: Path) -> Path:
    return digits_checkpoint


def load(original: Path) -> nn.Module:
    model = models.build("small-cnn", num_classes=10, in_channels=1, width=8)
    models.load_checkpoint(original, model)
    return model


def options(path: Path, chosen: dict[str, dict[str, object]], retain: bool = True, **metadata: object) -> Path:
    """A file of amun tune, with one epoch where nothing else is said."""
    made = {(method, retain): {"recipe": SHORT, **own} for method, own in chosen.items()}
    save_tuned_options(path, made, metadata)
    return path


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tuned") / "tuned.json"
    save_tuned_options(
        path, {(method, retain): {"recipe": SHORT} for method in METHODS for retain in (True, False)}, {}
    )
    return path


def arguments(original: Path, out: Path, flags: str, *tuned: Path) -> list[str]:
    given = [
        "--model",
        original,
        *["--data", "digits", "--fraction", "0.05", "--epochs", "1", "--out"],
        out,
        *flags.split(),
    ]
    return ["compare", *map(str, given), *(part for path in tuned for part in ("--tuned", str(path)))]


def run(original: Path, out: Path, flags: str = "", *tuned: Path) -> int:
    return cli.main(arguments(original, out, flags, *tuned))


def written(out: Path) -> dict:
    return json.loads((out / "compare.json").read_text())


def compared(original: Path, out: Path, flags: str, *tuned: Path) -> dict:
    """The table with the retain set."""
    assert run(original, out, f"--settings with {flags}", *tuned) == 0
    return written(out)["tables"]["with"]


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}


@pytest.fixture(scope="module")
def full(original, tuned, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("full") / "out"
    assert run(original, out, "--seeds 2", tuned) == 0
    return out


class TestTable:
    def test_every_method_in_both_settings(self, full: Path) -> None:
        told = written(full)
        rows = [RETRAIN, NOOP, *COMPARED]
        assert {setting: list(table) for setting, table in told["tables"].items()} == {"with": rows, "without": rows}
        for setting, table in told["tables"].items():
            for name, line in table.items():
                missing = setting == "without" and name in ("ft", "l1-sparse")
                assert line["UA"]["n"] == (0 if missing else 1 if name == NOOP else 2)
                assert (line["remarks"] == [NEEDS]) == missing
                if not missing and name != NOOP:
                    assert line["seconds"]["mean"] > 0
                    assert line["options_source"] == ("the checkpoint" if name == RETRAIN else "tuned")
        assert told["sizes"] == {"forget": 60, "retain": 1137, "test": 600}
        assert told["ids"] == forget_ids(1197, fraction=0.05).tolist()
        assert {path.name for path in full.iterdir()} == {"cells", "compare.json", "compare.html"}
        assert {path.suffix for path in (full / "cells").iterdir()} == {".json"}

    def test_gap_and_statistics_by_hand(self, full: Path) -> None:
        for table in written(full)["tables"].values():
            retrain = [cell["row"] for cell in table[RETRAIN]["cells"].values()]
            baseline = {key: np.mean([row[key] for row in retrain]) for key in GAP}
            for line in table.values():
                rows = [cell["row"] for cell in line["cells"].values()]
                columns = {column: [row[column] for row in rows] for column in (*GAP, "forget error")}
                columns["gap"] = [sum(abs(row[key] - baseline[key]) for key in GAP) / 4 for row in rows]
                for column, values in columns.items():
                    seen = line[column]
                    assert seen["mean"] == (pytest.approx(sum(values) / len(values)) if rows else None)
                    spread = pytest.approx(abs(values[0] - values[-1]) / math.sqrt(2)) if len(rows) == 2 else None
                    assert seen["deviation"] == spread

    def test_the_no_op_is_the_model_as_it_is(self, original: Path, full: Path) -> None:
        splits = data.load("digits")
        forget, retain = split(splits.train, forget_ids(1197, fraction=0.05))
        sets = {"forget": forget, "retain": retain, "test": splits.test}
        row = evaluate({"it": load(original)}, **sets, baseline=None).rows["it"]
        for table in written(full)["tables"].values():
            (cell,) = table[NOOP]["cells"].values()
            assert {key: cell["row"][key] for key in GAP} == {key: row[key] for key in GAP}
            assert cell["row"]["seconds"] is None

    def test_seeds_differ_and_both_settings_have_the_same_retraining(self, full: Path) -> None:
        tables = written(full)["tables"]
        given = tables["with"]
        for name in (RETRAIN, "rl"):
            first, second = (cell["row"]["FT AUC"] for cell in given[name]["cells"].values())
            assert first != second
        assert given[RETRAIN] == tables["without"][RETRAIN]
        assert given["rl"]["FT AUC"] != tables["without"]["rl"]["FT AUC"]
        assert [given[name]["options"]["include_forget"] for name in ("amun", "amun:no-forget")] == [True, False]
        assert given["amun"]["FT AUC"] != given["amun:no-forget"]["FT AUC"]

    def test_text_and_page_have_the_rows_and_nothing_from_elsewhere(self, original, tuned, full, capsys) -> None:
        assert run(original, full, "--seeds 2", tuned) == 0
        printed, page = capsys.readouterr().out, (full / "compare.html").read_text()
        seen = Page(page)
        assert not seen.count("img")
        assert "file:" not in page
        pictures = [f"{what}, {of}" for of in ("with D_R", "D_F only") for what in ("UA against TA", "Gap by method")]
        assert seen.figures == pictures
        told = written(full)
        gaps = [setting["salun"]["gap"] for setting in told["tables"].values()]
        words = [f"{gap['mean']:.2f} ± {gap['deviation']:.2f}" for gap in gaps]
        for word in ("with D_R", "D_F only", "no-op (original)", "Retrain", "AMUN without D_F", *words):
            assert word in printed
            assert word in page
        assert str(full) not in page + json.dumps(told)
        assert "The seeds change" in page

    def test_retrain_and_no_op_are_there_unasked_and_once(self, original: Path, tmp_path: Path) -> None:
        """Retraining goes by the checkpoint and what is given."""
        assert run(original, tmp_path, "--methods retrain --seeds 1 --settings without") == 0
        tables = written(tmp_path)["tables"]
        assert {key: list(table) for key, table in tables.items()} == {"without": [RETRAIN, NOOP]}
        recipe = tables["without"][RETRAIN]["options"]["recipe"]
        assert (recipe["epochs"], recipe["lr"], recipe["schedule"], recipe["batch_size"]) == (1, 0.1, "cosine", 64)

    def test_a_preset_where_it_has_the_method(self, original: Path, tmp_path: Path) -> None:
        table = compared(original, tmp_path, "--preset unlearn-saliency --methods ga,amun --seeds 1")
        assert table["ga"]["options_source"] == "preset unlearn-saliency"
        assert table["amun"]["options_source"] == "defaults"
        assert table["ga"]["options"]["recipe"]["lr"] == 1e-5

    def test_files_for_both_settings_and_the_test_images_that_tuning_has_not_seen(self, original, tmp_path) -> None:
        files = [
            options(tmp_path / f"{retain}.json", {"ga": {"recipe": Recipe(epochs=1, lr=lr)}}, retain, seed=7)
            for retain, lr in ((True, 0.02), (False, 0.03))
        ]
        assert run(original, tmp_path / "out", "--methods ga --seeds 1", *files) == 0
        seen = written(tmp_path / "out")
        lrs = {setting: table["ga"]["options"]["recipe"]["lr"] for setting, table in seen["tables"].items()}
        assert lrs == {"with": 0.02, "without": 0.03}
        assert seen["sizes"]["test"] == 300
        assert seen["facts"]["tested_on"] == "300 of 600 test samples; amun tune has used the others"
        images, labels = tuning.split_test_set(data.load("digits").test, 7)[1].tensors
        assert seen["tables"]["with"][NOOP]["TA"]["mean"] == accuracy(predict(load(original), images), labels)

    def test_a_mask_of_a_file_is_used(self, original: Path, tmp_path: Path) -> None:
        files = [options(tmp_path / f"{len(own)}.json", {"rl": own}) for own in ({}, {"mask": 0.01})]
        seen = [compared(original, tmp_path / "out", "--methods rl --seeds 1", path)["rl"] for path in files]
        assert seen[1]["options"]["mask"] == 0.01
        assert seen[0]["FT AUC"] != seen[1]["FT AUC"]


class TestCells:
    @pytest.mark.slow
    def test_a_killed_command_goes_on(self, original: Path, tuned: Path, tmp_path: Path, full: Path) -> None:
        command = arguments(original, tmp_path, "--seeds 2", tuned)
        assert ended_at("amun_ext.experiments.compare._cell", 6, command).returncode == -signal.SIGKILL
        before = times(tmp_path)
        assert len(before) == 5 < len(times(full))
        assert not (tmp_path / "compare.json").exists()
        assert cli.main(command) == 0
        after = times(tmp_path)
        assert {name: after[name] for name in before} == before
        assert set(after) == set(times(full))

        def cells(folder: Path) -> dict:
            return {
                (setting, name, seed): {key: cell["row"][key] for key in GAP}
                for setting, table in written(folder)["tables"].items()
                for name, line in table.items()
                for seed, cell in line["cells"].items()
            }

        assert cells(tmp_path) == cells(full)

    def test_a_stopped_command_says_that_it_goes_on(self, original, tmp_path, capsys, monkeypatch) -> None:
        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("amun_ext.unlearning.config.unlearn", stop)
        assert run(original, tmp_path) == 130
        assert "stopped; run the same command again to resume" in capsys.readouterr().err
        assert [name.partition(".")[0] for name in times(tmp_path)] == [NOOP]

    @pytest.mark.parametrize(
        ("flag", "value", "again"),
        [
            ("seeds", "3", {"retrain.2", "ga.with.2"}),
            ("lr", "0.05", {"retrain.0", "retrain.1"}),
            ("settings", "both", {"ga.without.0", "ga.without.1"}),
            ("methods", "ga,rl", {"rl.with.0", "rl.with.1"}),
            ("tuned", "other", {"ga.with.0", "ga.with.1"}),
            ("seed", "1 --overwrite", {"no-op.0", "retrain.0", "retrain.1", "ga.with.0", "ga.with.1"}),
            ("model", "other", {"no-op.0", "retrain.0", "retrain.1", "ga.with.0", "ga.with.1"}),
        ],
    )
    def test_what_is_other_is_made_anew_and_only_that(self, original, tuned, tmp_path, flag, value, again) -> None:
        first = {"methods": "ga", "settings": "with", "seeds": "2", "tuned": tuned}
        if flag == "tuned":
            value = options(tmp_path / "other.json", {"ga": {"recipe": Recipe(epochs=1, lr=0.02)}})
        if flag == "model":
            model = load(original)
            next(model.parameters()).data[0] += 0.01
            models.save_checkpoint(tmp_path / "other.safetensors", model, models.read_metadata(original))
            value = f"{tmp_path / 'other.safetensors'} --overwrite"

        def made(flags: dict[str, object], more: str = "") -> dict[str, int]:
            told = " ".join(f"--{name} {given}" for name, given in flags.items())
            assert run(original, out, f"{told} {more}") == 0
            return times(out)

        out = tmp_path / "out"
        before, table = made(first), written(out)["tables"]
        after = made(first | {flag: value})
        assert {re.sub(r"\.\w{16}\.json$", "", name) for name in after.keys() - before.keys()} == again
        assert {name: after[name] for name in before} == before
        # the table is overwritten; cells stay beside each other
        assert made(first, "--overwrite") == after
        assert written(out)["tables"] == table

    def test_a_file_that_says_it_is_another_is_not_taken(self, original: Path, tuned: Path, tmp_path: Path) -> None:
        flags = "--methods ga --seeds 1"
        first = compared(original, tmp_path, flags, tuned)["ga"]["UA"]
        (path,) = (tmp_path / "cells").glob("ga.*")
        cell = json.loads(path.read_text())
        other = cell | {"identity": cell["identity"] | {"seed": 5}, "row": cell["row"] | {"UA": 0.0}}
        for wrong in (json.dumps(other), json.dumps(cell)[:90]):
            path.write_text(wrong)
            assert compared(original, tmp_path, flags, tuned)["ga"]["UA"] == first
            assert json.loads(path.read_text())["identity"] == cell["identity"]

    def test_the_search_is_made_once_and_counted_in_every_row(self, original, tuned, tmp_path, monkeypatch) -> None:
        """By a clock that goes on in the search alone."""
        searched, clock = [], [100.0]

        def slow(*given: object, **options: object):
            searched.append(options)
            clock[0] += 1.5
            return find_min_adversarial(*given, **options)

        monkeypatch.setattr(compare, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
        monkeypatch.setattr(SEARCH, slow)
        rows = "ga,amun,amun:no-forget,amun+salun"
        (own := tmp_path / "cells/my-examples.safetensors").parent.mkdir(parents=True)
        own.touch()
        assert run(original, tmp_path, f"--methods {rows} --seeds 2", tuned) == 0
        assert searched == [{"method": "ddn"}]
        for table in written(tmp_path)["tables"].values():
            for name in rows.split(","):
                seconds = [cell["row"]["seconds"] for cell in table[name]["cells"].values()]
                assert seconds == 2 * [1.5 if "amun" in name else 0.0], name
        assert [*tmp_path.rglob("*examples*")] == [own]

    def test_other_searches_are_other_examples_and_what_they_do_not_find_is_told(
        self, original, tmp_path, monkeypatch
    ) -> None:
        methods = []

        def partly(*given: object, method: str, **options: object):
            methods.append(method)
            result = find_min_adversarial(*given, method=method, **options)
            result.found[: 3 if method == "ddn" else 0] = False
            return result

        monkeypatch.setattr(SEARCH, partly)
        path = options(tmp_path / "tuned.json", {"amun": {"search": "pgd"}, "amun+salun": {}})
        for _ in range(2):  # also from the file
            table = compared(original, tmp_path / "out", "--methods amun,amun+salun --seeds 2", path)
            assert "3 samples left out" in table["amun+salun"]["remarks"]
            assert "3 samples left out" not in table["amun"]["remarks"]
        assert methods == ["pgd", "ddn"]

    @pytest.mark.parametrize("how", ["loss", "logits"])
    def test_a_method_that_diverges_has_a_row_that_says_so(self, original, tmp_path, capsys, monkeypatch, how) -> None:
        recipe = Recipe(epochs=1, lr=1e18 if how == "loss" else 0.01)
        path = options(tmp_path / "tuned.json", {"ft": {"recipe": recipe}, "ga": {}})
        if how == "logits":  # a last step that no loss has seen
            ours = METHODS["ft"].function

            @functools.wraps(ours)
            def last(model, *given, **options):
                ours(model, *given, **options)
                next(model.parameters()).data.fill_(torch.inf)

            monkeypatch.setitem(METHODS, "ft", dataclasses.replace(METHODS["ft"], function=last))
        for _ in range(2):  # also from the file
            table = compared(original, tmp_path / "out", "--methods ft,ga --seeds 2", path)
            assert table["ft"]["remarks"] == ["2 of 2 failed"]
            assert table["ft"]["UA"] == {"mean": None, "deviation": None, "n": 0}
            printed, page = capsys.readouterr().out, (tmp_path / "out/compare.html").read_text()
            assert re.search(r"FT, with D_R, seed 1  .*(the loss is|finite logits)", printed)
            assert re.search(r"<dt>FT, with D_R, seed 0</dt><dd>.*(the loss is|finite)", page)
            assert table["ga"]["remarks"] != ["2 of 2 failed"]


class TestInput:
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ("--methods ft,hope", "methods must be some of .*, got 'hope'"),
            ("--methods amun:backwards", "got 'amun:backwards'"),
            ("--methods ft:no-forget", "got 'ft:no-forget'"),
            ("--methods ft,ga,ft", "methods must be different"),
            ("--methods=", "methods must be some of"),
            ("--seeds 0", "seeds must be"),
            ("--tuned absent.json", "absent.json must be a file of tuned options"),
            ("--lr -1", "lr must be"),
            ("--data fashion-mnist-mini", "those that the checkpoint was trained on"),
            ("--fraction 2", "fraction must be"),
        ],
    )
    def test_leaves_no_file(self, original, tmp_path, refused, flags, message) -> None:
        refused(arguments(original, tmp_path / "out", flags), message)
        assert not (tmp_path / "out").exists()

    def test_files_that_do_not_fit_together(self, original, tmp_path, refused) -> None:
        one, other = (
            options(tmp_path / f"{method}.json", {method: {}}, seed=seed) for method, seed in (("ga", 1), ("rl", 2))
        )
        for second, message in ((one, "two for the same"), (other, r"files with the same seed, .* got \[1, 2\]")):
            refused(arguments(original, tmp_path / "out", "", one, second), message)
            assert not (tmp_path / "out").exists()

    def test_a_checkpoint_without_a_recipe_needs_to_be_told(self, original, tmp_path, refused) -> None:
        torch.save(load(original).state_dict(), foreign := tmp_path / "net.pt")
        flags = "--arch small-cnn --width 8 --methods ga --seeds 1 --settings without"
        refused(arguments(foreign, tmp_path / "out", flags), "retraining must be of a checkpoint with a recipe")
        assert run(foreign, tmp_path / "out", f"{flags} --lr 0.1") == 0

    def test_a_folder_in_the_way(self, original, tmp_path, refused) -> None:
        (tmp_path / "compare.html").mkdir(parents=True)
        refused(arguments(original, tmp_path, ""), r"free to hold a file compare\.html")
