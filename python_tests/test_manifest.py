"""Data that live: what is erased, added, renamed or changed between two requests, and what is said of it."""

import base64
import json
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext import AdversarialSet, InputError, cli, data, deletion, models
from amun_ext.auditing import load_references, train_references
from amun_ext.data import Splits, aligned, manifest_of, training_data, without
from amun_ext.data import manifest as module
from amun_ext.data.manifest import KEY, _read
from amun_ext.deletion import Record, Request
from amun_ext.deletion.request import sets
from amun_ext.training import Recipe
from amun_ext.unlearning.config import resolve_config

GONE_ID = "amun: error: --ids must be of samples that are still in --data, got [3], which were forgotten and erased"
CLASSES = ("anna", "bob", "cleo")


def picture(rng: np.random.Generator, label: int) -> Image.Image:
    pixels = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8)
    pixels[..., label] += 100
    return Image.fromarray(pixels)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch) -> Path:
    """Of every class six to train on and three to test on; the current folder is beside them."""
    rng, root = np.random.default_rng(0), tmp_path / "photos"
    for part, count in (("train", 6), ("test", 3)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                picture(rng, label).save(root / part / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return root


def known(splits: Splits, forgotten: Sequence[int] = ()) -> dict[str, str]:
    """The metadata of a checkpoint that was trained on them."""
    return {"training_data": training_data(splits), "forgotten": json.dumps([*forgotten]), KEY: manifest_of(splits)}


def same_but(splits: Splits, before: Splits, gone: Sequence[int] = ()) -> bool:
    kept = [row for row in range(len(before.train)) if row not in gone]
    images = splits.train.tensors[0]
    return (
        torch.equal(images[kept], before.train.tensors[0][kept])
        and not images[list(gone)].any()
        and torch.equal(splits.train.tensors[1], before.train.tensors[1])
        and all(torch.equal(*pair) for pair in zip(splits.test.tensors, before.test.tensors, strict=True))
        and splits.classes == before.classes
    )


class TestFolders:
    @pytest.fixture
    def before(self, photos: Path) -> Splits:
        return data.load(photos)

    def again(self, photos: Path, metadata: dict[str, str]) -> Splits:
        return aligned(data.load(photos, classes=data.classes_of(metadata)), metadata)

    def test_unchanged_folders_are_aligned(self, photos: Path, before: Splits) -> None:
        splits = self.again(photos, known(before))
        assert same_but(splits, before)
        assert (splits.absent, splits.outside, splits.known_as) == ((), (), training_data(before))
        assert splits.names == before.names
        assert before.names[7] == "train/bob/1.png"

    def test_forgotten_samples_may_be_missing(self, photos: Path, before: Splits) -> None:
        for name in ("anna/2", "cleo/5"):
            (photos / f"train/{name}.png").unlink()
        splits = self.again(photos, known(before, [2, 4, 17]))
        assert same_but(splits, before, [2, 17])
        assert (splits.absent, splits.outside, training_data(splits)) == ((2, 17), (), training_data(before))
        assert splits.names == tuple("" if row in (2, 17) else name for row, name in enumerate(before.names))
        assert self.again(photos, known(before, range(18))).absent == (2, 17)

    @pytest.mark.parametrize("emptied", [False, True])
    def test_a_whole_class_may_be_missing(self, photos: Path, before: Splits, emptied: bool) -> None:
        """Its folders, or what was in that of training."""
        metadata = known(before, range(6, 12))
        for part in ("train",) if emptied else ("train", "test"):
            shutil.rmtree(photos / part / "bob")
            if emptied:
                (photos / part / "bob").mkdir()
        splits = self.again(photos, metadata)
        assert splits.classes == CLASSES
        assert torch.equal(splits.train.tensors[1], before.train.tensors[1])
        assert splits.absent == tuple(range(6, 12))
        assert splits.test.tensors[1].unique().tolist() == ([0, 1, 2] if emptied else [0, 2])

    def test_new_samples_are_left_out(self, photos: Path, before: Splits) -> None:
        metadata, rng = known(before), np.random.default_rng(1)
        picture(rng, 0).save(photos / "train/anna/00.png")
        for part in ("train", "test"):
            (photos / part / "art").mkdir()
            picture(rng, 0).save(photos / part / "art/0.png")
        splits = self.again(photos, metadata)
        assert same_but(splits, before)
        assert splits.outside == ("train/anna/00.png", "train/art/0.png")

    def test_a_renamed_file_is_the_same_sample(self, photos: Path, before: Splits) -> None:
        (photos / "train/anna/2.png").rename(photos / "train/anna/z.png")
        splits = self.again(photos, known(before))
        assert same_but(splits, before)
        assert splits.names[2] == "train/anna/z.png"

    def test_every_other_difference_is_named(self, photos: Path, before: Splits) -> None:
        rng = np.random.default_rng(1)
        (photos / "train/anna/0.png").unlink()
        picture(rng, 0).save(photos / "train/anna/1.png")
        (photos / "train/anna/2.png").rename(photos / "train/bob/moved.png")
        picture(rng, 1).save(photos / "train/bob/new.png")
        with pytest.raises(InputError) as caught:
            self.again(photos, known(before, [3]))
        assert str(caught.value) == (
            "data must be those that the checkpoint was trained on, but for what it has forgotten, got others: "
            "missing: train/anna/0.png; changed: train/anna/1.png; of another class: train/anna/2.png, now "
            "train/bob/moved.png of class bob; new: train/bob/new.png"
        )

    def test_a_forgotten_sample_may_change(self, photos: Path, before: Splits) -> None:
        picture(np.random.default_rng(1), 0).save(photos / "train/anna/1.png")
        splits = self.again(photos, known(before, [1]))
        assert same_but(splits, before, [1])
        assert splits.outside == ("train/anna/1.png",)

    def test_the_only_coloured_image_may_be_missing(self, photos: Path) -> None:
        for path in photos.rglob("*.png"):
            if path != photos / "train/anna/0.png":
                Image.open(path).convert("L").save(path)
        before = data.load(photos)
        (photos / "train/anna/0.png").unlink()
        assert same_but(self.again(photos, known(before, [0])), before, [0])
        grey = data.load(photos)
        picture(np.random.default_rng(1), 0).save(photos / "train/anna/9.png")
        splits = self.again(photos, known(grey))
        assert same_but(splits, grey)
        assert splits.outside == ("train/anna/9.png",)

    def test_names_of_erased_samples_are_removed(self, photos: Path, before: Splits) -> None:
        metadata = known(before, [2])
        metadata[KEY] = without(metadata[KEY], [2])
        kept = _read(metadata)
        assert (kept.names[2], kept.hashes[2], kept.labels[2]) == ("", bytes(8), 0)
        assert kept.names[3] == "train/anna/3.png"
        (photos / "train/anna/2.png").unlink()
        assert self.again(photos, metadata).absent == (2,)
        assert without(None, [2]) is None


class TestArrays:
    @pytest.fixture
    def before(self) -> Splits:
        train, test = (TensorDataset(torch.rand(count, 1, 4, 4), torch.arange(count) % 3) for count in (9, 4))
        return Splits(train, test, CLASSES)

    def rows(self, splits: Splits, rows: Sequence[int]) -> Splits:
        return replace(splits, train=TensorDataset(*splits.train[list(rows)]))

    def test_rows_are_matched_by_content(self, before: Splits) -> None:
        metadata = known(before, [1, 5])
        assert same_but(aligned(self.rows(before, [0, 2, 3, 4, 6, 7, 8]), metadata), before, [1, 5])
        assert same_but(aligned(self.rows(before, [8, 0, 2, 3, 4, 5, 6, 7]), metadata), before, [1])
        with pytest.raises(InputError, match=r"got others: missing: row 2, row 3$"):
            aligned(self.rows(before, [0, 1, 4, 5, 6, 7, 8]), metadata)
        images = before.train.tensors[0].clone()
        images[3] *= 0.9
        with pytest.raises(InputError, match=r"got others: changed: row 3$"):
            aligned(replace(before, train=TensorDataset(images, before.train.tensors[1])), metadata)

    def test_one_of_two_equal_images_may_be_missing(self, before: Splits) -> None:
        """That which is forgotten, whichever is missing."""
        images, labels = before.train.tensors
        images[3] = images[6]
        assert labels[3] == labels[6]
        for gone, left in ((3, 6), (6, 3)):
            splits = aligned(self.rows(before, [row for row in range(9) if row != left]), known(before, [gone]))
            assert same_but(splits, before, [gone])

    def test_is_aligned_once_and_only_with_a_manifest(self, before: Splits) -> None:
        metadata = known(before)
        once = aligned(before, metadata)
        assert aligned(once, {**metadata, "training_data": "another"}) is once
        assert aligned(before, {"training_data": "another"}) is before

    def test_damage_is_refused(self, before: Splits) -> None:
        whole = manifest_of(before)
        fewer = module._packed(replace(_read({KEY: whole}), labels=()))
        strange = module._packed(replace(_read({KEY: whole}), labels=(3,) * 9))
        bomb = base64.b64encode(zlib.compress(bytes(module.LARGEST + 1), 1)).decode()
        for text in (whole[:-8], "é", "", fewer, strange, bomb, manifest_of(before)[:40]):
            with pytest.raises(InputError, match="the checkpoint's manifest must be "):
                aligned(before, {**known(before), KEY: text})

    def test_too_many_samples_have_none(self, before: Splits, monkeypatch) -> None:
        monkeypatch.setattr(module, "LONGEST", 100)
        assert manifest_of(before) is None

    def test_a_million_samples_fit(self) -> None:
        """Into the header of a safetensors file, of which 100 MB are allowed."""
        rng = np.random.default_rng(0)
        hashes = tuple(rng.bytes(8) for _ in range(20_000))
        names = tuple(f"train/n{row % 1000:08}/n{row % 1000:08}_{row}.JPEG" for row in range(20_000))
        made = module.Manifest(CLASSES, 3, (0,) * 20_000, hashes, names)
        assert 50 * len(module._packed(made)) < module.LONGEST

    def test_names_must_fit(self, before: Splits) -> None:
        for names in (("a",) * 9, ("a", "b")):
            with pytest.raises(InputError, match="names must be one text for every training sample, all different"):
                data.splits.checked(replace(before, names=names), "mine")


class TestRequests:
    @pytest.fixture
    def before(self) -> Splits:
        train, test = (TensorDataset(torch.rand(count, 1, 8, 8), torch.arange(count) % 3) for count in (12, 6))
        return Splits(train, test, CLASSES)

    @pytest.fixture
    def later(self, before: Splits) -> Splits:
        """Without rows 1 and 5."""
        left = [row for row in range(12) if row not in (1, 5)]
        return replace(before, train=TensorDataset(*before.train[left]))

    @pytest.fixture
    def model(self) -> nn.Module:
        return models.build("small-cnn", num_classes=3, in_channels=1, width=4)

    def test_the_next_one_has_the_same_ids(self, before: Splits, later: Splits, model: nn.Module) -> None:
        metadata, chosen = known(before, [1, 5]), resolve_config("ft", recipe={"epochs": 1, "lr": 0.1})
        record = Record.read(metadata, "m")
        asked = sets(later, torch.tensor([7]), record)
        assert torch.equal(asked.forget.tensors[0], before.train.tensors[0][[7]])
        kept = [row for row in range(12) if row not in (1, 5, 7)]
        assert torch.equal(asked.retain.tensors[0], before.train.tensors[0][kept])
        request = Request(torch.tensor([7]), False, chosen, False, 0, record)
        made = deletion.forget(model, later, request)
        assert json.loads(made.metadata["forgotten"]) == [1, 5, 7]
        assert made.metadata["training_data"] == metadata["training_data"]
        assert [row for row, name in enumerate(_read(made.metadata).hashes) if not any(name)] == [1, 5]

    def test_references_stay_valid_and_new_ones_skip_erased_samples(
        self, before: Splits, later: Splits, model: nn.Module, tmp_path: Path
    ) -> None:
        recipe = Recipe(epochs=1, lr=0.1)
        train_references(model, before, recipe, out=tmp_path, models=2)
        splits = aligned(later, known(before, [1, 5]))
        train_references(model, splits, recipe, out=tmp_path, models=4)
        membership = load_references(tmp_path).membership
        assert not membership[2:, [1, 5]].any()
        assert membership[:2, [1, 5]].any()


class TestCommandLine:
    @pytest.fixture
    def err(self) -> list[str]:
        """What every command has said."""
        return []

    @pytest.fixture
    def run(self, photos: Path, capsys, err: list[str]) -> Callable[[str], tuple[int, str]]:
        def run(line: str) -> tuple[int, str]:
            capsys.readouterr()
            status = cli.main(f"{line} --data photos --device cpu".split())
            err.append(capsys.readouterr().err)
            return status, err[-1].splitlines()[-1]

        assert run("train --model small-cnn --width 4 --epochs 1 --batch-size 8 --out o.safetensors")[0] == 0
        return run

    def test_requests_go_on_when_files_are_erased(self, run, photos: Path) -> None:
        forget = "--method ft --epochs 1"
        assert run(f"forget --model o.safetensors --ids 3,5 {forget} --out one")[0] == 0
        for number in (3, 5):
            (photos / f"train/anna/{number}.png").unlink()
        later = "--model one/model.safetensors"
        assert run(f"forget {later} --ids 7 {forget} --retrain --out two")[0] == 0
        erased = _read(models.read_metadata("two/model.safetensors"))
        assert [row for row, name in enumerate(erased.names) if not name] == [3, 5]
        report = json.loads(Path("two/report.json").read_text())
        assert (report["sizes"]["retain"], report["facts"]["ids"]) == (15, [7])
        assert run("audit --model two/model.safetensors --original o.safetensors --retrain --out audit")[0] == 0
        found = json.loads(Path("audit/audit.json").read_text())
        assert (found["facts"]["ids"], found["facts"]["previously_forgotten_ids"]) == ([7], [3, 5])
        assert found["sizes"]["retain"] == 15
        for line, message in {
            f"forget {later} --ids 3 {forget} --out x": "ids must be not forgotten by an earlier request, got row 3",
            f"audit {later} --out x": "the checkpoint has forgotten are no longer in --data",
            f"audit {later} --ids 3 --out x": "--ids must be of samples that are still in --data, got [3]",
        }.items():
            status, told = run(line)
            assert (status, message in told) == (2, True), told
        (photos / "train/bob/0.png").unlink()
        status, told = run(f"forget {later} --ids 7 {forget} --out x")
        assert (status, told.split("got others: ")[1]) == (2, "missing: train/bob/0.png")

    def test_a_search_uses_the_same_ids(self, run, err, photos: Path) -> None:
        """Of data that the model was not trained on they are rows, which is said."""
        image = data.load("photos").train.tensors[0][7]
        assert run("forget --model o.safetensors --ids 3,5 --method ft --epochs 1 --out one")[0] == 0
        for number in (3, 5):
            (photos / f"train/anna/{number}.png").unlink()
        search = "search --model one/model.safetensors --methods ddn --no-curves --out"
        assert run(f"{search} s --ids 7")[0] == 0
        found = AdversarialSet.load("s/ddn.safetensors")
        assert float((found.images[0] - image).norm()) == pytest.approx(float(found.distance[0]), abs=1e-5)
        assert run(f"{search} no --ids 3") == (2, GONE_ID)
        assert run(f"{search} all")[0] in (0, 3)
        assert len(AdversarialSet.load("all/ddn.safetensors").images) == 16
        assert not [line for told in err for line in told.splitlines() if "ids are rows" in line]
        (photos / "train/bob/0.png").unlink()
        assert run(f"{search} other --ids 3")[0] in (0, 3)
        assert "amun: the model was not trained on --data: ids are rows of --data" in err[-1].splitlines()

    def test_new_samples_are_reported(self, run, err, photos: Path) -> None:
        picture(np.random.default_rng(1), 0).save(photos / "train/anna/00.png")
        assert run("references --model o.safetensors --num-models 2 --out r")[0] == 0
        assert load_references("r").membership.shape[1] == 18 + 9
        assert run("forget --model o.safetensors --ids 0 --method ft --epochs 1 --out one")[0] == 0
        assert "left out, because the model was not trained on it (1): train/anna/00.png" in err[-1]

    def test_a_checkpoint_with_a_manifest_is_loaded(self, run) -> None:
        model = models.build("small-cnn", num_classes=3, in_channels=3, width=4)
        model.load_state_dict(load_file("o.safetensors"))

    def test_a_search_skips_an_erased_class(self, run, photos: Path) -> None:
        for part in ("train", "test"):
            shutil.rmtree(photos / part / "bob")
        assert run("search --model o.safetensors --count 4 --methods ddn --no-curves --out s")[0] in (0, 3)
