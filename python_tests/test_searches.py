"""amun search: what it writes, what it goes on with, what it refuses."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from page_tools import Page
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext import AdversarialSet, InputError, cli, data, find_min_adversarial, models
from amun_ext.experiments import searches, searches_document
from amun_ext.report import html
from amun_ext.search import ATTACKS
from amun_ext.training import DataPart, Pass, Recipe, fit


@pytest.fixture(scope="module", params=["digits", "fashion-mnist-mini"])
def any_data(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A hardly trained network for each data set."""
    paths = {}
    for name in ("digits", "fashion-mnist-mini"):
        torch.manual_seed(0)
        model = models.build("small-cnn", num_classes=10, in_channels=1, width=4)
        images, labels = data.load(name).train.tensors
        recipe = Recipe(epochs=3, lr=0.1, schedule="cosine", batch_size=32)
        fit(model, [Pass([DataPart(TensorDataset(images[:800], labels[:800]))])], recipe)
        paths[name] = tmp_path_factory.mktemp(name) / "model.safetensors"
        models.save_checkpoint(paths[name], model, {"arch": "small-cnn", "width": "4"})
    return paths


def arguments(checkpoints, out: Path, more: str = "", of: str = "digits") -> list[str]:
    given = ["--model", str(checkpoints[of]), "--data", of, "--out", str(out)]
    return ["search", *given, "--methods", "ddn,ffgsm", "--no-curves", *more.split()]


def search(*given: object) -> int:
    return cli.main(arguments(*given))


def written(out: Path) -> dict:
    return json.loads((out / "searches.json").read_text())


class TestCommand:
    def test_writes_examples_numbers_and_a_page(self, checkpoints, any_data, tmp_path, capsys) -> None:
        out, methods = tmp_path / "out", ",".join(ATTACKS)
        assert search(checkpoints, out, f"--methods {methods} --curves --count 12", any_data) == 0
        files = {path.name for path in out.iterdir()}
        assert files == {*(f"{name}.safetensors" for name in ATTACKS), "curves", "searches.json", "searches.html"}
        told, printed = written(out), capsys.readouterr().out
        assert [*told["methods"]] == [*ATTACKS]
        wrong = told["misclassified"]
        for name, row in told["methods"].items():
            result = AdversarialSet.load(out / f"{name}.safetensors")
            counted = torch.tensor([number not in wrong for number in told["ids"]])
            distances = result.distance[counted].double()
            assert row["n"] == row["found"] == int(counted.sum()) > 0
            assert row["mean"] == pytest.approx(distances.mean().item())
            assert row["median"] == distances.median()  # the lower of two
            assert row["gradients"] == pytest.approx(result.grad_evals[counted].double().mean().item())
            assert row["seconds"] > 0
            assert row["settings"]["refine"] == 0
            assert name in printed
        assert [point["steps"] for point in told["curves"]["pgd"]] == [5, 10, 20, 50]
        assert sorted(point["steps"] for point in told["curves"]["deepfool"]) == [5, 10, 20, 40]
        own = next(point for point in told["curves"]["ddn"] if point["steps"] == ATTACKS["ddn"].options["steps"])
        assert own["median"] == told["methods"]["ddn"]["median"]
        assert [point["steps"] for point in told["curves"]["ffgsm"]] == [8]
        assert told["pair"]["methods"] == ["pgd", "ddn"]
        assert told["facts"]["model"] == "model.safetensors"
        assert told["facts"]["versions"]["torch"] == torch.__version__
        assert str(tmp_path) not in (out / "searches.json").read_text() + (out / "searches.html").read_text()
        page = Page((out / "searches.html").read_text())
        titles = ["Distances", "Median distance against gradients", "ddn against pgd, sample by sample"]
        assert page.figures == titles
        assert page.count("img") == searches_document.EXAMPLES * (1 + 2 * len(ATTACKS))

    def test_continues_after_existing_results(self, checkpoints, tmp_path) -> None:
        assert search(checkpoints, tmp_path / "out", "--ids 7,3,11 --methods ddn") == 0
        before = (tmp_path / "out/ddn.safetensors").stat().st_mtime_ns
        first = written(tmp_path / "out")
        assert first["pair"] is None
        assert search(checkpoints, tmp_path / "out", "--ids 7,3,11") == 0
        assert (tmp_path / "out/ddn.safetensors").stat().st_mtime_ns == before
        told = written(tmp_path / "out")
        assert told["ids"] == [7, 3, 11]
        assert told["methods"]["ddn"] == first["methods"]["ddn"] | {"seconds": None}
        assert told["methods"]["ffgsm"]["seconds"] > 0
        assert told["pair"]["methods"] == ["ddn", "ffgsm"]

    def test_a_stopped_search_resumes(self, checkpoints, tmp_path, capsys, monkeypatch) -> None:
        def stopped(*arguments, method, **options):
            if method == "ffgsm":
                raise KeyboardInterrupt
            return find_min_adversarial(*arguments, method=method, **options)

        with monkeypatch.context() as patched:
            patched.setattr("amun_ext.experiments.searches.find_min_adversarial", stopped)
            assert search(checkpoints, tmp_path / "out", "--count 4") == 130
        assert "stopped; run the same command again to resume" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["ddn.safetensors"]
        assert search(checkpoints, tmp_path / "out", "--count 4") == 0
        assert written(tmp_path / "out")["methods"]["ddn"]["seconds"] is None

    @pytest.mark.parametrize("other", ["--refine 3", "--seed 1", "--ids 0-68,70", "--part test", "--quantize 255"])
    def test_other_searches_in_the_folder_are_refused(self, checkpoints, tmp_path, refused, other) -> None:
        first, second = ("--ids 0-69", "") if "--ids" in other else ("--count 70", "--count 70")
        assert search(checkpoints, tmp_path / "out", f"--methods ffgsm {first}") in (0, 3)
        before = (tmp_path / "out/searches.json").read_text()
        command = arguments(checkpoints, tmp_path / "out", f"--methods ffgsm {second} {other}")
        refused(command, r"error: (out must be .*ffgsm\.safetensors|--out must be a folder without another)")
        assert (tmp_path / "out/searches.json").read_text() == before

    def test_samples_without_an_example_are_reported(self, checkpoints, tmp_path, capsys, monkeypatch) -> None:
        def partly(*arguments, method, **options):
            result = find_min_adversarial(*arguments, method=method, **options)
            found = torch.tensor([True, method != "ffgsm", True, True])
            distance = torch.where(found, result.distance.clamp(min=0.1), math.inf)
            return dataclasses.replace(result, found=found, distance=distance)

        monkeypatch.setattr("amun_ext.experiments.searches.find_min_adversarial", partly)
        monkeypatch.setattr("amun_ext.experiments.searches.predict", lambda *_: torch.eye(10)[digits(30, 20, 10, 40)])
        assert search(checkpoints, tmp_path / "out", "--ids 30,20,10,40") == 3
        assert "amun: no adversarial example by ffgsm: ids 20\n" in capsys.readouterr().err
        told = written(tmp_path / "out")["methods"]
        assert (told["ddn"]["ids_without_example"], told["ffgsm"]["ids_without_example"]) == ([], [20])
        assert (told["ffgsm"]["n"], told["ffgsm"]["found"]) == (4, 3)
        assert told["ffgsm"]["p95"] is None
        assert told["ffgsm"]["median"] is not None

    def test_own_data_and_functions(self, checkpoints, tmp_path, monkeypatch) -> None:
        images, labels = (part[:20].numpy() for part in data.load("digits").test.tensors)
        sets = dict.fromkeys(("train_images", "test_images"), images)
        np.savez(tmp_path / "mine.npz", **sets, train_labels=labels, test_labels=labels)
        mine = f"--data {tmp_path / 'mine.npz'} --part test"
        more = "--fraction 0.5 --refine 2 --precision bfloat16 --min-margin 0.1 --quantize 255"
        assert search(checkpoints, tmp_path / "out", f"{mine} {more}") in (0, 3)
        told = written(tmp_path / "out")
        assert (told["samples"], told["facts"]["data"], told["facts"]["part"]) == (10, "mine.npz", "test")
        wanted = {"refine": 2, "quantize": 255, "min_margin": 0.1, "precision": "bfloat16"}
        assert wanted.items() <= told["methods"]["ddn"]["settings"].items()
        assert str(tmp_path) not in (tmp_path / "out/searches.json").read_text()
        # All there are, where there are fewer than the default number.
        assert search(checkpoints, tmp_path / "all", f"{mine} --methods ffgsm") in (0, 3)
        assert sorted(written(tmp_path / "all")["ids"]) == [*range(20)]
        assert search(checkpoints, tmp_path / "all-ids", f"{mine} --ids 0-19") in (0, 3)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ("--methods ddn,newton", "methods must be some of pgd, .*, got 'newton'"),
            ("--methods=", "methods must be some of"),
            ("--methods ddn,ddn", "methods must be different"),
            ("--part valid", "--part must be train or test, got valid"),
            ("--count 0", "count must be a whole number from 1"),
            ("--count 99999", "count must be at most the 1197 samples"),
            ("--ids 5,99999", r"ids in \[0, 1197\), got 99999"),
            ("--ids 5,5", "repeated"),
            ("--ids-file absent.txt", r"absent\.txt"),
            ("--fraction 2", "fraction must be"),
            ("--refine -1", "refine must be"),
            ("--quantize 0", "quantize must be"),
            ("--min-margin -1", "min_margin must be"),
            ("--precision half", "precision must be"),
            ("--width 8", "a checkpoint of this architecture"),
            ("--data no/such/folder", "data set must be one of"),
        ],
    )
    def test_bad_input_leaves_no_file(self, checkpoints, tmp_path, refused, flags, message) -> None:
        refused(arguments(checkpoints, tmp_path / "out", flags), message)
        assert not (tmp_path / "out").exists()

    def test_unwritable_results_are_refused_before_any_work(self, checkpoints, tmp_path, refused) -> None:
        (tmp_path / "out/searches.html").mkdir(parents=True)
        refused(arguments(checkpoints, tmp_path / "out"), r"free to hold a file searches\.html")


def digits(*rows: int) -> torch.Tensor:
    return data.load("digits").train.tensors[1][list(rows)]


class Linear(nn.Module):
    """Two classes; the logit of class 1 is the image's mean less one half."""

    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, images):
        logit = self.slope * (images.flatten(1).mean(1) - 0.5)
        return torch.stack([-logit, logit], dim=1)


MEANS = torch.tensor([0.9, 0.7, 0.2, 0.8, 0.4])
IMAGES, LABELS = MEANS.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), torch.tensor([1, 1, 0, 0, 0])
EXACT = 2 * (MEANS - 0.5).abs()[torch.tensor([0, 1, 2, 4])].double().numpy()  # of 4 elements; the 3 of row 3 is wrong


class TestCompare:
    def test_distances_and_statistics_by_hand(self) -> None:
        seen = searches.compare(Linear(), IMAGES, LABELS, ["ddn", "ffgsm"], ids=torch.arange(10, 15), curves=False)
        assert seen.counted.tolist() == [True, True, True, False, True]
        assert seen.distances("ddn") == pytest.approx(EXACT, rel=0.02)
        row = seen.rows["ddn"]
        assert (row["n"], row["found"]) == (4, 4)
        assert row["mean"] == pytest.approx(EXACT.mean(), rel=0.02)
        assert row["median"] == pytest.approx(0.4, rel=0.02)
        assert row["p95"] == pytest.approx(0.8, rel=0.02)
        assert seen.to_dict()["misclassified"] == [13]
        assert "misclassifies 1 of" in seen.to_text()
        assert seen.missing == {}
        assert seen.closer("ddn", "ffgsm") == (100.0 * np.mean(seen.distances("ffgsm") < seen.distances("ddn")), 4)

    def test_a_new_attack_appears_in_the_report(self, monkeypatch) -> None:
        monkeypatch.setitem(ATTACKS, "boundary", dataclasses.replace(ATTACKS["deepfool"], options={"steps": 3.0}))
        monkeypatch.setitem(ATTACKS, "at once", dataclasses.replace(ATTACKS["ffgsm"], options={}))
        monkeypatch.setattr(
            "amun_ext.experiments.searches.find_min_adversarial",
            lambda *arguments, method, **options: find_min_adversarial(*arguments, method="deepfool", **options),
        )
        seen = searches.compare(Linear(), IMAGES, LABELS, ["boundary", "at once"])
        assert [point.steps for point in seen.curves["boundary"]].count(3) == 1
        assert {point.steps for point in seen.curves["boundary"]} == {3, 5, 10, 20, 40}
        assert [point.steps for point in seen.curves["at once"]] == [None]
        assert html.render(seen.document()).count("<figure role=") == 3
        with pytest.raises(SystemExit):
            cli.main(["search", "--help"])

    @pytest.mark.parametrize("methods", [["ddn"], ["pgd"], ["ffgsm", "ddn", "pgd"]])
    def test_pictures_of_any_number_of_methods(self, methods) -> None:
        seen = searches.compare(Linear(), IMAGES[:2], LABELS[:2], methods, curves=False)
        page = html.render(seen.document())
        assert len(Page(page).figures) == (2 if len(methods) == 1 else 3)
        assert page == html.render(seen.document())

    @pytest.mark.filterwarnings("ignore:.* their gradient is zero")
    def test_no_example_found(self) -> None:
        lost = searches.compare(Linear(0.0), IMAGES, torch.zeros_like(LABELS), ["ddn", "ffgsm"])
        assert lost.missing == {"ddn": [0, 1, 2, 3, 4], "ffgsm": [0, 1, 2, 3, 4]}
        wrong = searches.compare(Linear(), IMAGES, (IMAGES.mean((1, 2, 3)) < 0.5).long(), ["ddn", "ffgsm"])
        assert wrong.rows["ddn"]["n"] == 0
        for seen in (lost, wrong):
            page = html.render(seen.document())
            Page(page)
            assert "<svg" not in page
            assert json.loads(json.dumps(seen.to_dict(), allow_nan=False))["methods"]["ddn"]["median"] is None

    def test_names_are_escaped(self) -> None:
        hostile = "<script src='x'></script>&\""
        facts = {hostile: hostile}
        seen = searches.compare(Linear(), IMAGES, LABELS, ["ddn"], classes=[hostile, "b"], facts=facts, curves=False)
        page = html.render(seen.document())
        assert hostile not in page
        Page(page)

    def test_refuses_unknown_methods(self) -> None:
        with pytest.raises(InputError, match="methods must be some of"):
            searches.compare(Linear(), IMAGES, LABELS, [])
