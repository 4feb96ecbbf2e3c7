"""Targets of distillation from reference models: whose logits they are, and audits that use the same models."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext import InputError, cli, data, models
from amun_ext.auditing import ModelSignals, load_references, prepare_from_references, train_references
from amun_ext.auditing.audit import check
from amun_ext.auditing.model_signals import draw_membership, set_identity
from amun_ext.auditing.shadows import cost
from amun_ext.data import Splits
from amun_ext.models import read_metadata
from amun_ext.training import Recipe
from amun_ext.unlearning import cross_fit, load_targets
from amun_ext.unlearning.config import resolve_config

RECIPE = Recipe(epochs=1, lr=0.1, batch_size=16)
MODELS = 24  # enough that some saw no copy of each sample


@pytest.fixture(scope="module")
def splits() -> Splits:
    """Training rows 0 and 29 are equal, and so are training row 1 and the first test sample."""
    digits = data.load("digits")
    images, labels = (torch.cat([tensor[:29], tensor[:1]]) for tensor in digits.train.tensors)
    test = (
        torch.cat([train[1:2], tensor[:9]]) for train, tensor in zip((images, labels), digits.test.tensors, strict=True)
    )
    return Splits(TensorDataset(images, labels), TensorDataset(*test), digits.classes)


@pytest.fixture
def model() -> nn.Module:
    return models.build("small-cnn", num_classes=10, in_channels=1, width=4)


def drawn(model: nn.Module, splits: Splits, count: int, seed: int = 0) -> ModelSignals:
    """References that were not trained, with random answers."""
    membership = draw_membership(len(splits.train) + len(splits.test), count, seed)
    logits = torch.randn(*membership.shape, 10, generator=torch.Generator().manual_seed(0))
    return ModelSignals(membership, {"logits": logits}, set_identity(model, splits, RECIPE, seed, None))


def split_by_pair(splits: Splits) -> int:
    """A seed by which the two halves have one of the equal training samples each."""
    count = len(splits.train) + len(splits.test)
    return next(seed for seed in range(100) if draw_membership(count, 2, seed)[0, [0, 29]].sum() == 1)


class TestLogits:
    def test_are_the_mean_of_models_that_saw_no_copy(self, model, splits, tmp_path) -> None:
        references = drawn(model, splits, MODELS)
        targets = prepare_from_references(
            references, model, splits, out=tmp_path / "targets.safetensors", previously_forgotten=[4]
        )
        copies = {0: (0, 29), 29: (0, 29), 1: (1, 30)}
        kept = [row for row in range(30) if row != 4]
        expected: list[Tensor] = []
        for row in kept:
            of_sample = [
                references.signals["logits"][number, row]
                for number, trained_on in enumerate(references.membership)
                if not any(trained_on[copy] for copy in copies.get(row, (row,)))
            ]
            expected.append(torch.stack(of_sample).mean(0))
        torch.testing.assert_close(targets.logits, torch.stack(expected))
        images = splits.train.tensors[0]
        assert torch.equal(targets.of(TensorDataset(images[kept[1:]])), targets.logits[1:])
        with pytest.raises(InputError, match="targets must be logits of all forget samples"):
            targets.of(TensorDataset(images[4:5]))
        assert load_targets(tmp_path / "targets.safetensors").teachers == references.digests()

    def test_are_kept_with_the_other_signals_on_demand(self, model, splits, tmp_path) -> None:
        out = tmp_path / "references"
        train_references(model, splits, RECIPE, out=out, models=2, keep_logits=True)
        references = load_references(out, logits=True)
        how = {"out": tmp_path / "targets.safetensors", "previously_forgotten": [0, 1, 29]}  # those with copies
        targets = prepare_from_references(references, model, splits, **how)
        unseen = (~references.membership[:, 2]).nonzero().item()
        assert torch.equal(targets.logits[0], references.signals["logits"][unseen, 2])
        assert "logits" not in load_references(out).signals
        assert load_references(out).digests() == references.digests()
        with pytest.raises(InputError, match=r"^references must be loaded with logits"):
            prepare_from_references(load_references(out), model, splits, out=tmp_path / "others.safetensors")
        with pytest.raises(InputError, match=r"of this set of references.*with logits"):
            train_references(model, splits, RECIPE, out=out, models=2)
        path = out / "reference-0001.safetensors"
        whole = load_file(path)
        for damaged in (whole["logits"] * torch.nan, whole["logits"][1:], whole["logits"].double(), None):
            tensors = {name: tensor for name, tensor in whole.items() if name != "logits" or damaged is not None}
            save_file(tensors if damaged is None else {**tensors, "logits": damaged.contiguous()}, path)
            with pytest.raises(InputError, match=r"^references must be whole"):
                load_references(out, logits=True)
        path.unlink()
        with pytest.raises(InputError, match=r"^references must be complete pairs"):
            load_references(out, logits=True)

    def test_references_without_logits_are_refused(self, model, splits, tmp_path) -> None:
        train_references(model, splits, RECIPE, out=tmp_path, models=2)
        with pytest.raises(InputError, match=r"^references must be of models with their logits"):
            load_references(tmp_path, logits=True)


class TestNumberOfModels:
    def test_an_error_says_how_many_more_are_needed(self, model, splits, tmp_path) -> None:
        seed, out = split_by_pair(splits), tmp_path / "targets.safetensors"
        with pytest.raises(InputError, match=r"^references must be increased by \d+ more models") as refused:
            prepare_from_references(drawn(model, splits, 2, seed), model, splits, out=out)
        assert "has seen a copy" in str(refused.value)
        needed = int(str(refused.value).partition("--num-models ")[2].split()[0])
        for count in range(4, needed, 2):
            with pytest.raises(InputError, match=rf"increased by {needed - count} more"):
                prepare_from_references(drawn(model, splits, count, seed), model, splits, out=out)
        assert len(prepare_from_references(drawn(model, splits, needed, seed), model, splits, out=out)) == 30

    def test_of_an_image_with_many_copies_none_is_enough(self, model, splits, tmp_path) -> None:
        images, labels = splits.train.tensors
        same = Splits(TensorDataset(images[:1].repeat(30, 1, 1, 1), labels), splits.test, splits.classes)
        with pytest.raises(InputError, match=r"^references must be replaced by a cross-fit"):
            prepare_from_references(drawn(model, same, 8), model, same, out=tmp_path / "targets.safetensors")


class TestOthers:
    def test_data_and_architecture_must_be_the_same(self, model, splits, tmp_path) -> None:
        references, out = drawn(model, splits, MODELS), tmp_path / "targets.safetensors"
        wider = models.build("small-cnn", num_classes=10, in_channels=1, width=8)
        with pytest.raises(InputError, match=r"^references must be of the model's architecture"):
            prepare_from_references(references, wider, splits, out=out)
        turned = Splits(
            TensorDataset(*(tensor.flip(0) for tensor in splits.train.tensors)), splits.test, splits.classes
        )
        with pytest.raises(InputError, match=r"^references must be trained on these"):
            prepare_from_references(references, model, turned, out=out)
        assert not list(tmp_path.iterdir())

    def test_targets_of_other_references_are_replaced_only_on_demand(self, model, splits, tmp_path) -> None:
        out = tmp_path / "targets.safetensors"
        first = prepare_from_references(drawn(model, splits, MODELS), model, splits, out=out)
        assert prepare_from_references(drawn(model, splits, MODELS), model, splits, out=out).teachers == first.teachers
        others = drawn(model, splits, MODELS + 2)
        with pytest.raises(InputError, match=r"^out must be a new file"):
            prepare_from_references(others, model, splits, out=out)
        again = prepare_from_references(others, model, splits, out=out, overwrite=True)
        assert again.teachers[:MODELS] == first.teachers

    def test_damaged_digests_are_refused(self, model, splits, tmp_path) -> None:
        out = tmp_path / "targets.safetensors"
        whole = prepare_from_references(drawn(model, splits, MODELS), model, splits, out=out)
        for teachers in ("text", [1], None):
            replace(whole, metadata={**whole.metadata, "teachers": teachers}).save(out)
            with pytest.raises(InputError, match="with other contents"):
                load_targets(out)


class TestShadows:
    def test_cross_fit_as_often_as_there_are_pairs(self, model, splits, tmp_path) -> None:
        out = tmp_path / "targets.safetensors"
        targets = prepare_from_references(drawn(model, splits, MODELS), model, splits, out=out)
        assert (targets.folds, targets.repeats) == (2, MODELS // 2)
        config = resolve_config("distill", targets=targets)
        assert "12 cross-fits of 2 folds (as much as 12 trainings)" in cost(splits, torch.arange(3), config, RECIPE, 6)
        assert config.to_dict()["targets"]["references"] == MODELS

    def test_a_repeated_cross_fit_is_the_mean(self, model, splits) -> None:
        def fit(seed: int, repeats: int) -> Tensor:
            return cross_fit.cross_fit(model, splits.train, RECIPE, folds=2, seed=seed, repeats=repeats)

        torch.testing.assert_close(fit(3, 2), (fit(3, 1) + fit(3 + 2**20, 1)) / 2)


class TestAudit:
    def test_does_not_judge_with_the_models_that_gave_the_targets(self, model, splits, tmp_path) -> None:
        out, ids = tmp_path / "targets.safetensors", torch.arange(2, 5)
        references = drawn(model, splits, MODELS)
        targets = prepare_from_references(references, model, splits, out=out)
        check([model], splits, ids, references=drawn(model, splits, MODELS, seed=1), teachers=targets.teachers)
        check([model], splits, ids, references=references)
        for some in (references, drawn(model, splits, 2)):
            with pytest.raises(
                InputError, match=rf"^references must be models that gave no targets .* {len(some)} that"
            ):
                check([model], splits, ids, references=some, teachers=targets.teachers)

    def test_of_the_command_line_knows_them_whatever_the_folder(
        self, digits_checkpoint: Path, tmp_path: Path, capsys
    ) -> None:
        def amun(command: str, model: Path, *more: object) -> int:
            return cli.main([*map(str, (command, "--model", model, "--data", "digits", "--quiet", *more))])

        references, targets = tmp_path / "references", tmp_path / "targets.safetensors"
        first, second = tmp_path / "first/model.safetensors", tmp_path / "second/model.safetensors"
        assert amun("references", digits_checkpoint, "--num-models", 2, "--keep-logits", "--out", references) == 0
        prepare = ("prepare", digits_checkpoint, "--references", references, "--out", targets)
        assert amun(*prepare, "--lr", 0.2) == 2
        assert "--references must be given without a recipe" in capsys.readouterr().err
        assert amun(*prepare) == 0
        distill = ("--ids", "40-60", "--targets", targets, "--without-retain", "--epochs", 1)
        assert amun("forget", digits_checkpoint, *distill, "--out", first.parent) == 0
        request = ("--ids", "5,6", "--method", "ga", "--epochs", 1)
        assert amun("forget", first, *request, "--out", second.parent) == 0
        assert "teachers" not in read_metadata(digits_checkpoint)
        assert read_metadata(second)["teachers"] == read_metadata(first)["teachers"]
        anew = ("--ids", "7,8", "--method", "retrain", "--epochs", 1, "--out", tmp_path / "third")
        assert amun("forget", second, *anew) == 0
        assert "teachers" not in read_metadata(tmp_path / "third/model.safetensors")
        moved = references.rename(tmp_path / "moved")
        for model in (first, second):
            capsys.readouterr()
            assert amun("audit", model, "--references", moved, "--retrain", "--out", tmp_path / "audit") == 2
            error = capsys.readouterr().err
            assert "references must be models that gave no targets" in error
            assert len(error.splitlines()) == 1
        assert not [*(tmp_path / "audit").glob("retrained*")]
