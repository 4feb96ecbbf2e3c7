"""Reference models: who is trained on what, resuming, files that do not fit, and what they are good for."""

import json
import os

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext import InputError, data, models
from amun_ext.auditing import references as module
from amun_ext.auditing.model_signals import check_same, draw_membership, signals_from
from amun_ext.auditing.references import load_references, train_references
from amun_ext.data import Splits
from amun_ext.metrics import log_odds
from amun_ext.models import predict
from amun_ext.training import Recipe

RECIPE = Recipe(epochs=1, lr=0.1, batch_size=32)


@pytest.fixture(scope="module")
def splits() -> Splits:
    digits = data.load("digits")
    return Splits(TensorDataset(*digits.train[:50]), TensorDataset(*digits.test[:31]), digits.classes)


@pytest.fixture
def model() -> nn.Module:
    return models.build("small-cnn", num_classes=10, in_channels=1, width=4)


@pytest.fixture
def train(model, splits, tmp_path):
    def trained(**options):
        return train_references(model, **{"splits": splits, "recipe": RECIPE, "out": tmp_path, "models": 4} | options)

    return trained


class TestHalves:
    @pytest.mark.parametrize("samples", [4, 81, 1000])
    def test_every_sample_is_in_half_of_the_models(self, samples: int) -> None:
        made = draw_membership(samples, 8)
        assert made.shape == (8, samples)
        assert (made.sum(0) == 4).all()
        assert ((made.sum(1) - samples / 2).abs() <= 0.5).all()
        assert (made[::2] ^ made[1::2]).all()

    def test_more_models_do_not_change_the_earlier_ones(self) -> None:
        assert torch.equal(draw_membership(100, 8, seed=3)[:4], draw_membership(100, 4, seed=3))
        assert not torch.equal(draw_membership(100, 4, seed=3), draw_membership(100, 4, seed=4))
        assert len(draw_membership(100, 8).unique(dim=0)) == 8


class TestTraining:
    def test_each_is_trained_on_its_half_and_has_signals_of_all_samples(
        self, train, splits, model, monkeypatch
    ) -> None:
        trained = []

        def spy(*arguments) -> nn.Module:
            trained.append((arguments[1:], fitted(*arguments)))
            return trained[-1][1]

        fitted = module.train_from_scratch
        monkeypatch.setattr(module, "train_from_scratch", spy)
        made = train()
        images, labels = (torch.cat(pair) for pair in zip(splits.train.tensors, splits.test.tensors, strict=True))
        assert torch.equal(made.membership, draw_membership(81, 4))
        for row, ((inside, *_), fresh) in enumerate(trained):
            assert torch.equal(inside.tensors[0], images[made.membership[row]])
            told = log_odds(predict(fresh, images), labels).float()
            torch.testing.assert_close(made.signals["log-odds"][row], told)
        weights = [next(fresh.parameters()) for _, fresh in trained]
        assert not any(torch.equal(weights[0], other) for other in weights[1:])
        assert {name: (each.dtype, each.shape) for name, each in made.signals.items()} == dict.fromkeys(
            ("log-odds", "sm-taylor"), (torch.float32, (4, 81))
        )

    def test_a_stopped_training_resumes_and_models_can_be_added(self, train, tmp_path, monkeypatch) -> None:
        whole = train(out=tmp_path / "whole", models=6)
        made, fitted = [], module.train_from_scratch

        def stops(*arguments) -> nn.Module:
            if len(made) == 3:
                raise KeyboardInterrupt
            made.append(arguments[3])
            return fitted(*arguments)

        monkeypatch.setattr(module, "train_from_scratch", stops)
        with pytest.raises(KeyboardInterrupt):
            train()
        monkeypatch.setattr(module, "train_from_scratch", lambda *a: made.append(a[3]) or fitted(*a))
        assert len(train()) == 4
        assert len(made) == 4
        more = train(models=6)
        assert len(made) == len(set(made)) == 6
        for name, signal in whole.signals.items():
            assert torch.equal(signal, more.signals[name])

    @pytest.mark.slow
    def test_two_workers_give_the_results_of_one(self, train, tmp_path) -> None:
        one, two = train(out=tmp_path / "one", models=2), train(out=tmp_path / "two", models=2, num_workers=2)
        assert torch.equal(one.signals["sm-taylor"], two.signals["sm-taylor"])

    def test_the_model_is_unchanged_and_its_weights_are_not_used(self, train, model, tmp_path) -> None:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        first = train(models=2)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
        assert torch.equal(train(models=2, out=tmp_path / "again").signals["log-odds"], first.signals["log-odds"])


class TestFiles:
    OTHERS = {  # noqa: RUF012
        "recipe": {"recipe": Recipe(epochs=1, lr=0.2, batch_size=32)},
        "seed": {"seed": 1},
    }

    @pytest.mark.parametrize("name", OTHERS)
    def test_a_folder_of_other_references_is_refused(self, train, name: str) -> None:
        train(models=2)
        with pytest.raises(InputError, match=f"a new folder or one of this set of references.*with {name}"):
            train(models=2, **self.OTHERS[name])

    def test_another_architecture_and_other_data_are_refused(self, train, splits, model, tmp_path) -> None:
        train(models=2)
        wider = models.build("small-cnn", num_classes=10, in_channels=1, width=8)
        with pytest.raises(InputError, match="with architecture"):
            train_references(wider, splits, RECIPE, out=tmp_path, models=2)
        turned = Splits(
            TensorDataset(*(tensor.flip(0) for tensor in splits.train.tensors)), splits.test, splits.classes
        )
        with pytest.raises(InputError, match="with data"):
            train(models=2, splits=turned)
        made = load_references(tmp_path)
        check_same("references", made, model, splits)
        with pytest.raises(InputError, match="trained on these training and test samples"):
            check_same("references", made, model, turned)
        with pytest.raises(InputError, match="of the model's architecture"):
            check_same("references", made, wider, splits)

    def test_a_damaged_file_is_named_and_made_again(self, train, tmp_path) -> None:
        first = train(models=2)
        path = tmp_path / "reference-0001.safetensors"
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(InputError, match=r"reference-0001\.safetensors.*remove it"):
            train(models=2)
        path.unlink()
        with pytest.raises(InputError, match=r"1 files, without reference-0001\.safetensors"):
            load_references(tmp_path, models=2)
        assert torch.equal(train(models=2).signals["log-odds"], first.signals["log-odds"])
        told = json.loads((tmp_path / "references.json").read_text())
        (tmp_path / "references.json").write_text(json.dumps(told | {"format": "another"}))
        with pytest.raises(InputError, match="of format"):
            load_references(tmp_path)

    def test_a_folder_of_something_else(self, tmp_path) -> None:
        with pytest.raises(InputError, match="a folder that amun references has written"):
            load_references(tmp_path)

    def test_nothing_half_written(self, train, tmp_path) -> None:
        train(models=2)
        assert sorted(os.listdir(tmp_path)) == [
            "reference-0000.safetensors",
            "reference-0001.safetensors",
            "references.json",
        ]


class TestInput:
    BAD = {  # noqa: RUF012
        "odd": ({"models": 3}, "models must be even"),
        "none": ({"models": 0}, "models must be a whole number from 2 on"),
        "seed": ({"seed": -1}, "seed must be"),
        "num_workers": ({"num_workers": 0}, "num_workers must be"),
    }

    @pytest.mark.parametrize("case", BAD)
    def test_is_refused_before_any_work(self, train, tmp_path, case: str) -> None:
        options, message = self.BAD[case]
        with pytest.raises(InputError, match=message):
            train(**options)
        assert not list(tmp_path.iterdir())


def test_signals_are_those_of_the_table() -> None:
    logits, labels = torch.randn(20, 5), torch.randint(0, 5, (20,))
    made = signals_from(logits, labels)
    torch.testing.assert_close(made["log-odds"], log_odds(logits, labels).float())
    assert set(made) == {"log-odds", "sm-taylor"}
