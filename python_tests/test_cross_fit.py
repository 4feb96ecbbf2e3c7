"""Cross-fitting: who is trained on what, what is kept, resuming, requests that use it, and files that do not fit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext import InputError, cli, data, models
from amun_ext.auditing import load_references, train_shadows
from amun_ext.auditing import shadows as shadows_module
from amun_ext.auditing.shadows import cost
from amun_ext.data import Splits
from amun_ext.deletion import forget_ids
from amun_ext.models import predict
from amun_ext.training import Recipe
from amun_ext.unlearning import Targets, cross_fit, load_targets, prepare
from amun_ext.unlearning.config import resolve_config

RECIPE = Recipe(epochs=1, lr=0.1, batch_size=16)


@pytest.fixture(scope="module")
def splits() -> Splits:
    """Fifty digits, of which the last is the first again."""
    digits = data.load("digits")
    images, labels = (torch.cat([tensor[:49], tensor[:1]]) for tensor in digits.train.tensors)
    return Splits(TensorDataset(images, labels), TensorDataset(*digits.test[:40]), digits.classes)


@pytest.fixture
def model() -> nn.Module:
    return models.build("small-cnn", num_classes=10, in_channels=1, width=4)


@pytest.fixture
def prepared(model, splits, tmp_path):
    def made(**options) -> Targets:
        told = {"splits": splits, "recipe": RECIPE, "out": tmp_path / "targets.safetensors", "folds": 3}
        return prepare(model, **told | options)

    return made


class TestFolds:
    def test_are_equal_drawn_by_the_seed_and_equal_images_are_in_one(self, splits) -> None:
        numbers = cross_fit.fold_numbers(splits.train, 7, seed=3)
        assert numbers[:49].bincount().tolist() == [7] * 7
        assert numbers[49] == numbers[0]
        assert torch.equal(numbers, cross_fit.fold_numbers(splits.train, 7, seed=3))
        assert not torch.equal(numbers, cross_fit.fold_numbers(splits.train, 7, seed=4))

    def test_need_as_many_samples(self, splits) -> None:
        with pytest.raises(InputError, match=r"^splits must be of more different samples"):
            cross_fit.fold_numbers(splits.train, 50, seed=0)


class TestPrepare:
    def test_a_sample_has_the_logits_of_the_model_that_never_saw_it(self, prepared, splits, monkeypatch) -> None:
        trained, fitted = [], cross_fit.train_from_scratch

        def spy(*arguments) -> nn.Module:
            trained.append((arguments[1], arguments[3], fitted(*arguments)))
            return trained[-1][-1]

        monkeypatch.setattr(cross_fit, "train_from_scratch", spy)
        targets = prepared(seed=5)
        images, _ = splits.train.tensors
        numbers = cross_fit.fold_numbers(splits.train, 3, seed=5)
        assert len({seed for _, seed, _ in trained}) == 3
        for fold, (inside, _, fresh) in enumerate(trained):
            assert torch.equal(inside.tensors[0], images[numbers != fold])
            own = TensorDataset(images[numbers == fold])
            assert torch.equal(targets.of(own), predict(fresh, own.tensors[0]))

    def test_only_the_file_is_left(self, prepared, tmp_path) -> None:
        targets = prepared()
        assert [path.name for path in tmp_path.iterdir()] == ["targets.safetensors"]
        read = load_targets(tmp_path / "targets.safetensors")
        assert torch.equal(read.logits, targets.logits)
        assert torch.equal(read.hashes, targets.hashes)
        assert (read.folds, read.settings()) == (3, targets.settings())

    def test_what_was_stopped_goes_on_to_the_same_file(self, prepared, tmp_path, monkeypatch) -> None:
        prepared(out=tmp_path / "whole/targets.safetensors")
        made, trained = [], cross_fit._fold_logits

        def stopped(*arguments) -> torch.Tensor:
            made.append(arguments[4])
            if len(made) == 2:
                raise KeyboardInterrupt
            return trained(*arguments)

        monkeypatch.setattr(cross_fit, "_fold_logits", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepared()
        prepared()
        assert made == [0, 1, 1, 2]
        prepared()  # which is done
        assert made == [0, 1, 1, 2]
        one, other = ((tmp_path / name / "targets.safetensors").read_bytes() for name in (".", "whole"))
        assert one == other

    def test_workers_make_the_same(self, prepared, tmp_path) -> None:
        alone, together = prepared(), prepared(out=tmp_path / "other.safetensors", num_workers=2)
        assert torch.equal(alone.logits, together.logits)

    def test_of_another_cross_fit_is_refused_unless_it_is_to_be_replaced(self, prepared) -> None:
        prepared()
        for other in ({"seed": 1}, {"folds": 2}, {"recipe": replace(RECIPE, lr=0.2)}):
            with pytest.raises(InputError, match=r"^out must be a new file"):
                prepared(**other)
        assert prepared(seed=1, overwrite=True).settings()["seed"] == 1

    def test_samples_of_earlier_requests_are_in_no_model(self, prepared, splits, monkeypatch) -> None:
        inside, fitted = [], cross_fit.train_from_scratch
        monkeypatch.setattr(
            cross_fit, "train_from_scratch", lambda *told: inside.append(told[1].tensors[0]) or fitted(*told)
        )
        targets = prepared(previously_forgotten=[2, 5])
        assert len(targets) == 48
        assert all(len(images) < 48 for images in inside)
        gone = splits.train.tensors[0][[2, 5]]
        assert not any(torch.equal(image, other) for images in inside for image in images for other in gone)
        with pytest.raises(InputError, match=r"^targets must be logits of all forget samples .* 2 of 2"):
            targets.of(TensorDataset(gone))

    def test_arguments(self, prepared) -> None:
        for name, value in (("folds", 1), ("folds", 2.5), ("seed", -1), ("num_workers", 0), ("recipe", None)):
            with pytest.raises(InputError, match=f"^{name} must be"):
                prepared(**{name: value})


class TestTargets:
    def test_rows_are_known_by_their_images(self, prepared, splits) -> None:
        targets, images = prepared(), splits.train.tensors[0]
        rows = [7, 3, 49]
        assert torch.equal(targets.of(TensorDataset(images[rows])), targets.logits[rows])
        assert torch.equal(targets.logits[0], targets.logits[49])
        fewer = targets.without(TensorDataset(images[[0, 3]]))
        assert len(fewer) == 47  # a copy goes as well
        with pytest.raises(InputError, match=r"^targets must be .* 2 of 3"):
            fewer.of(TensorDataset(images[rows]))

    def test_other_files_are_refused(self, prepared, tmp_path) -> None:
        prepared()
        path = tmp_path / "targets.safetensors"
        models.save_checkpoint(tmp_path / "model.safetensors", nn.Linear(2, 2), {})
        (tmp_path / "text").write_text("{}")
        for other in (tmp_path, tmp_path / "none", tmp_path / "text", tmp_path / "model.safetensors"):
            with pytest.raises(InputError, match=r"^targets must be a file that amun prepare has written"):
                load_targets(other)
        whole = load_targets(path)
        for damaged in (
            replace(whole, logits=whole.logits * torch.nan),
            replace(whole, logits=whole.logits.double()),
            replace(whole, hashes=whole.hashes[1:]),
            replace(whole, metadata={}),
            replace(whole, metadata={**whole.metadata, "folds": "three"}),
            replace(whole, metadata={**whole.metadata, "recipe": None}),
        ):
            damaged.save(path)
            with pytest.raises(InputError, match=r"^targets must be a file that amun prepare has written"):
                load_targets(path)

    def test_are_no_references_of_an_audit(self, prepared, tmp_path) -> None:
        prepared()
        for path in (tmp_path, tmp_path / "targets.safetensors"):
            with pytest.raises(InputError, match=r"^references must be a folder that amun references has written"):
                load_references(path)


def test_a_method_that_needs_targets_is_not_run_without() -> None:
    with pytest.raises(InputError, match=r"^targets must be given for method distill \(amun prepare"):
        resolve_config("distill")


def test_options_are_in_the_order_of_the_method() -> None:
    """A checkpoint keeps them: equal requests give equal files."""
    assert list(resolve_config("bs").options) == ["eps", "teacher", "require_wrong", "bounds", "recipe"]


def test_every_shadow_has_a_cross_fit_of_its_own(prepared, model, splits, tmp_path, monkeypatch) -> None:
    config = resolve_config("distill", targets=prepared(), recipe={"epochs": 1})
    fitted, trained, taught = [], [], []
    cross_fitted, from_scratch = shadows_module.cross_fit, shadows_module.train_from_scratch

    def fit(model, everything, recipe, **options) -> torch.Tensor:
        fitted.append((everything.tensors[0], options["folds"]))
        return cross_fitted(model, everything, recipe, **options)

    def unlearned(self, model, forget, retain, *, targets, seed) -> nn.Module:
        taught.append((forget.tensors[0], len(targets)))
        return model

    monkeypatch.setattr(shadows_module, "cross_fit", fit)
    monkeypatch.setattr(
        shadows_module, "train_from_scratch", lambda *told: trained.append(told[1].tensors[0]) or from_scratch(*told)
    )
    monkeypatch.setattr(type(config), "unlearn", unlearned)
    ids = forget_ids(50, ids=[*range(1, 11)])
    train_shadows(model, splits, ids, config, RECIPE, out=tmp_path / "shadows", models=6)
    assert "cross-fit of 3 folds" in cost(splits, ids, config, RECIPE, 6)
    assert len(fitted) == len(trained) == len(taught) == 6
    for (inside, folds), images, (forget, rows) in zip(fitted, trained, taught, strict=True):
        assert folds == 3
        assert torch.equal(inside, images)
        assert torch.equal(inside[40:], forget)
        assert rows == len(forget)


class TestCommands:
    @pytest.fixture
    def targets(self, digits_checkpoint: Path, tmp_path: Path) -> Path:
        path = tmp_path / "targets.safetensors"
        assert self.amun("prepare", digits_checkpoint, "--folds", 2, "--out", path) == 0
        return path

    def amun(self, command: str, model: Path, *more: object) -> int:
        return cli.main([*map(str, (command, "--model", model, "--data", "digits", "--quiet", *more))])

    def test_a_request_removes_its_rows_whatever_the_method(
        self, digits_checkpoint: Path, targets: Path, tmp_path: Path, capsys
    ) -> None:
        train = data.load("digits").train
        count, whole = len(load_targets(targets)), targets.read_bytes()
        distill = ("--targets", targets, "--epochs", 1)  # whose method is then the default
        request = ("--ids", "40-60", *distill, "--out", tmp_path / "first")
        assert self.amun("forget", digits_checkpoint, *request) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "method: distill, because" in said
        assert "the model after is Distill" in said
        assert len(load_targets(targets)) == count - 21
        left = targets.read_bytes()
        targets.write_bytes(whole)  # as after a kill before its rows were removed
        assert self.amun("forget", digits_checkpoint, *request, "--dry-run") == 0
        alone = ("--without-retain", "--dry-run", "--out", tmp_path / "alone")
        assert self.amun("forget", digits_checkpoint, *request[:-2], *alone) == 0
        assert "lr 0.02," in capsys.readouterr().out
        assert cli.main(["replay", str(tmp_path / "first/record.json"), "--out", str(tmp_path / "again")]) == 0
        assert targets.read_bytes() == whole
        assert self.amun("forget", digits_checkpoint, *request) == 0
        assert "already done" in capsys.readouterr().out
        assert targets.read_bytes() == left
        later = tmp_path / "first/model.safetensors"
        other = ("--ids", "5", "--method", "ft", "--epochs", 1, "--targets", targets, "--out", tmp_path / "second")
        assert self.amun("forget", later, *other) == 0
        rows = load_targets(targets)
        assert len(rows) == count - 22
        assert len(rows.of(TensorDataset(*train[:5]))) == 5
        assert self.amun("forget", digits_checkpoint, "--ids", "5", *distill, "--out", tmp_path / "third") == 2
        assert "targets must be logits of all forget samples" in capsys.readouterr().err

    def test_compare_and_tune(self, digits_checkpoint: Path, targets: Path, tmp_path: Path, capsys) -> None:
        request = ("--fraction", 0.05, "--methods", "distill", "--out", tmp_path / "out")
        assert self.amun("compare", digits_checkpoint, *request) == 2
        assert "targets must be given" in capsys.readouterr().err
        request = (*request, "--targets", targets)
        assert self.amun("compare", digits_checkpoint, *request, "--seeds", 1, "--epochs", 1) == 0
        assert "Distill" in capsys.readouterr().out
        pytest.importorskip("optuna")
        short = ("--trials", 1, "--epochs", 1, "--out", tmp_path / "tuned")
        assert self.amun("tune", digits_checkpoint, *request[:4], "--targets", targets, *short) == 0
        assert (tmp_path / "tuned/tuned.json").exists()

    def test_of_other_training_data_or_another_recipe_are_refused(
        self, digits_checkpoint: Path, targets: Path, tmp_path: Path, capsys
    ) -> None:
        whole = load_targets(targets)
        recipe = whole.settings()["recipe"]
        for change in ({"data": "others"}, {"architecture": "another"}, {"recipe": {**recipe, "lr": 7.0}}):
            replace(whole, metadata={**whole.metadata, **change}).save(targets)
            request = ("--ids", "40-60", "--method", "distill", "--targets", targets, "--out", tmp_path / "out")
            assert self.amun("forget", digits_checkpoint, *request) == 2
            assert "--targets must be" in capsys.readouterr().err
