"""Models that no reset_parameters() draws anew: retrained from a function that builds them, or from start weights."""

import copy
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training_tools import equal, state

from amun_ext import InputError, cli, models, tuning, unlearn
from amun_ext.auditing import train_references, train_shadows
from amun_ext.data import Splits, load
from amun_ext.data.vision import import_torchvision
from amun_ext.deletion import Record
from amun_ext.deletion.request import retraining, sets
from amun_ext.experiments.compare import compare
from amun_ext.models.reinitialise import describe_init, untrained
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.unlearning.config import resolve_config

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")

RECIPE = Recipe(epochs=1, lr=0.05, batch_size=8)
CLI = "--data digits --device cpu --seed 0"


def vit() -> nn.Module:
    return import_torchvision().models.VisionTransformer(
        image_size=8, patch_size=4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3
    )


def convnext() -> nn.Module:
    block = import_torchvision().models.convnext.CNBlockConfig
    return import_torchvision().models.ConvNeXt([block(8, 16, 1), block(16, None, 1)], num_classes=3)


def wrapped(wrap, size: int = 8, classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Flatten(), wrap(nn.Linear(3 * size * size, 8)), nn.ReLU(), nn.Linear(8, classes))


class Own(nn.Module):
    """A parameter, a constant and a mean that training moves, in and outside of the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(0.1 * torch.rand(192, 3))
        self.register_buffer("mean", torch.tensor(0.3))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("unsaved", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += x.mean().detach()
            self.unsaved += 1
        return (x - self.mean - 1e-3 * self.unsaved).flatten(1) @ self.scale


BUILDERS = {
    "vit": vit,
    "convnext": convnext,
    "weight_norm": partial(wrapped, nn.utils.weight_norm),
    "weight_norm, parametrised": partial(wrapped, nn.utils.parametrizations.weight_norm),
    "spectral_norm": partial(wrapped, nn.utils.spectral_norm),
    "spectral_norm, parametrised": partial(wrapped, nn.utils.parametrizations.spectral_norm),
    "own": Own,
}


@pytest.fixture
def data() -> TensorDataset:
    return TensorDataset(torch.rand(40, 3, 8, 8), torch.arange(40) % 3)


def fitted(build, data: TensorDataset, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = build()
    fit(model, [Pass([DataPart(data)])], RECIPE, RunOptions(seed=seed))
    return model


def apart(data: TensorDataset) -> tuple[TensorDataset, TensorDataset]:
    return TensorDataset(*data[:8]), TensorDataset(*data[8:])


def retrained(model: nn.Module, data: TensorDataset, **options: object) -> nn.Module:
    return unlearn(model, *apart(data), method="retrain", recipe=RECIPE, **options)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**model.state_dict(), **dict(model.named_buffers())}


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(value, tensors(other)[name]) for name, value in tensors(one).items())


class TestBuilder:
    @pytest.mark.parametrize("name", BUILDERS)
    def test_retrains_as_without_the_forget_set(self, name: str, data: TensorDataset) -> None:
        build, (_, retain) = BUILDERS[name], apart(data)
        model = fitted(build, data)
        before = state(model)
        assert same(retrained(model, data, seed=5, init=build), fitted(build, retain, seed=5))
        assert equal(model, before)

    @pytest.mark.parametrize("name", BUILDERS)
    def test_without_it_the_error_says_how_to_give_it(self, name: str, data: TensorDataset) -> None:
        model = BUILDERS[name]()
        with pytest.raises(InputError, match=r"or else given init, .* --arch module:function, or --init\), got old"):
            retrained(model, data)

    def test_frozen_weights_that_it_does_not_load_are_kept(self, data: TensorDataset) -> None:
        def drawn() -> nn.Module:
            return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

        def build(backbone: nn.Module) -> nn.Module:
            frozen = copy.deepcopy(backbone).requires_grad_(False)
            return nn.Sequential(frozen, nn.Flatten(), nn.Linear(144, 3))

        known = drawn()
        model = build(known)
        model[0][1].running_mean.fill_(0.7)  # training has moved it
        ignorant, knowing = untrained(model, lambda: build(drawn())), untrained(model, lambda: build(known))
        for made in (ignorant, knowing):
            assert torch.equal(made[0][0].weight, known[0].weight)
            assert not torch.equal(made[2].weight, model[2].weight)
        assert (ignorant[0][1].running_mean == 0.7).all()
        assert (knowing[0][1].running_mean == 0).all()

    def test_half_precision(self, data: TensorDataset) -> None:
        made = untrained(vit().to(torch.bfloat16), vit)
        assert {each.dtype for each in made.parameters()} == {torch.bfloat16}


class TestState:
    def test_a_fine_tuned_model_is_retrained_from_its_initial_weights(self, data: TensorDataset) -> None:
        start, (_, retain) = vit(), apart(data)
        weights = state(start)
        model, expected = copy.deepcopy(start), copy.deepcopy(start)
        fit(model, [Pass([DataPart(data)])], RECIPE, RunOptions(seed=0))
        fit(expected, [Pass([DataPart(retain)])], RECIPE, RunOptions(seed=5))
        assert same(retrained(model, data, seed=5, init=weights), expected)
        assert equal(start, weights)

    def test_is_refused_if_training_changes_buffers_outside_the_state_dict(self, data: TensorDataset) -> None:
        with pytest.raises(InputError, match=r"init must be a function for a model .* a state dict without unsaved"):
            retrained(fitted(Own, data), data, init=Own().state_dict())


def fails() -> nn.Module:
    raise RuntimeError("no such weights")


WRONG = {
    "must be of the model's architecture, got something else at ": convnext,
    "must be of the model's architecture, got something else at class_token": {"heads.head.bias": torch.ones(3)},
    "returns must be an nn.Module, got int": int,
    "must be a function that builds the model without arguments, got RuntimeError: no such weights": fails,
    "must be a function or a state dict, got .*ReLU": nn.ReLU(),
    "must be a function or a state dict, got <class 'str'>": "vit",
}


class TestInput:
    def test_is_refused(self) -> None:
        for message, init in WRONG.items():
            with pytest.raises(InputError, match=f"init {message}"):
                untrained(vit(), init)

    def test_trained_weights_are_refused(self, data: TensorDataset) -> None:
        model = fitted(vit, data)
        for init in (model.state_dict(), lambda: copy.deepcopy(model)):
            with pytest.raises(InputError, match="init must be of the model before training, got its trained weights"):
                retrained(model, data, init=init)

    def test_is_for_retraining_alone(self, data: TensorDataset) -> None:
        with pytest.raises(InputError, match="init must be left out: method ft has the options"):
            unlearn(vit(), *apart(data), method="ft", init=vit)

    def test_its_description_in_files(self) -> None:
        built = partial(models.build, "net:build", num_classes=10)
        assert describe_init(None) is None
        assert describe_init(vit) == "test_init:vit()"
        assert describe_init(built) == "amun_ext.models.build:build('net:build', num_classes=10)"
        one, other = {"a": torch.zeros(1), "b": torch.ones(1)}, {"b": torch.ones(1), "a": torch.zeros(1)}
        assert describe_init(one) == describe_init(other) != describe_init({**one, "a": torch.ones(1)})
        assert describe_init(one).startswith("weights ")
        assert resolve_config("retrain", default={"init": vit}).to_dict()["init"] == "test_init:vit()"


class TestReferences:
    @pytest.fixture
    def splits(self) -> Splits:
        sets = (TensorDataset(torch.rand(count, 3, 8, 8), torch.arange(count) % 3) for count in (20, 11))
        return Splits(*sets, ("a", "b", "c"))

    def test_two_workers_give_the_results_of_one(self, splits: Splits, tmp_path: Path) -> None:
        how = {"init": Own, "models": 2}
        made = [
            train_references(Own(), splits, RECIPE, out=tmp_path / str(count), num_workers=count, **how)
            for count in (1, 2)
        ]
        assert torch.equal(*(each.signals["log-odds"] for each in made))
        assert made[0].about["init"] == "test_init:Own()"

    def test_other_initial_weights_are_other_references(self, splits: Splits, tmp_path: Path) -> None:
        model = vit()
        train_references(model, splits, RECIPE, out=tmp_path, init=vit, models=2)
        with pytest.raises(InputError, match="of one with init 'test_init:vit\\(\\)' instead of 'weights "):
            train_references(model, splits, RECIPE, out=tmp_path, init=vit().state_dict(), models=2)

    def test_a_model_that_cannot_be_pickled_is_refused(self, splits: Splits, tmp_path: Path) -> None:
        parametrised = BUILDERS["weight_norm, parametrised"]
        for model, init in ((vit(), lambda: vit()), (parametrised(), parametrised)):
            with pytest.raises(InputError, match="num_workers must be 1 for a model or init that cannot be pickled"):
                train_references(model, splits, RECIPE, out=tmp_path / str(init), init=init, models=2, num_workers=2)

    def test_shadows_and_comparisons(self, splits: Splits, tmp_path: Path) -> None:
        model, ids, start = vit(), torch.arange(4), vit().state_dict()
        method = resolve_config("ft", recipe={"epochs": 1})
        with pytest.raises(InputError, match="or else given init"):
            train_shadows(model, splits, ids, method, RECIPE, out=tmp_path, models=6)
        how = {"out": tmp_path / "shadows", "models": 6, "init": vit}
        made = train_shadows(model, splits, ids, method, RECIPE, **how)
        assert made.about["init"] == "test_init:vit()"
        asked, anew = sets(splits, ids, Record()), retraining(model, Record(), {"epochs": 1, "lr": 0.1}, start)
        rows = {"with": {"bad-teacher": resolve_config("bad-teacher")}}  # which also needs an untrained model
        compared = compare(model, splits.test, asked, rows, anew, seeds=1, out=tmp_path)
        for row in ("retrain", "bad-teacher"):
            assert compared.tables["with"][row].config.to_dict()["init"] == describe_init(start)
            assert compared.tables["with"][row].rows

    def test_tuning(self, splits: Splits, tmp_path: Path) -> None:
        def tuned(init: object) -> tuning.Tuning:
            how = {"out": tmp_path / "tuned", "trials": 1, "recipe": RECIPE, "init": init}
            return tuning.tune(model, splits, torch.arange(4), ["bad-teacher"], **how)

        model, start = vit(), vit().state_dict()
        (trial,) = tuned(start).trials["bad-teacher"]
        assert trial.failure is None
        with pytest.raises(InputError, match="init"):
            tuned(vit)

    def test_a_checkpoint_identifies_its_init(self) -> None:
        start = vit().state_dict()
        metadata = {"recipe": '{"epochs": 1, "lr": 0.1}', "init": describe_init(start)}
        record = Record.read(metadata, "m")
        assert retraining(vit(), record, init=start).options["init"] is start
        for other, got in ((None, "none"), (vit, r"test_init:vit\(\)"), (vit().state_dict(), "weights ")):
            with pytest.raises(InputError, match=f"init must be the initial weights .*, weights .*--init.*, got {got}"):
                retraining(vit(), record, init=other)


OWN_NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, channels, 8, 8))
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(64 * channels, classes))

    def forward(self, x):
        return self.head((x + self.token).flatten(1))

def build(num_classes, in_channels):
    return Net(num_classes, in_channels)
"""


class TestCommandLine:
    @pytest.fixture
    def here(self, tmp_path: Path, monkeypatch) -> Iterator[None]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])
        Path("own_net.py").write_text(OWN_NET)
        yield
        sys.modules.pop("own_net", None)

    def run(self, line: str) -> int:
        return cli.main(line.split())

    def test_an_own_function_is_called_again(self, here: None) -> None:
        training, own = "--epochs 1 --batch-size 256", f"--arch own_net:build {CLI}"
        assert self.run(f"train --model own_net:build {CLI} {training} --out original.safetensors") == 0
        request = "--ids 0-19 --method ft --epochs 1 --retrain --out out"
        assert self.run(f"forget --model original.safetensors {own} {request}") == 0
        audited = f"audit --model out/model.safetensors --original original.safetensors {own} --retrain --out audit"
        assert self.run(audited) == 0
        retain = TensorDataset(*load("digits").train[20:])
        made = models.build("own_net:build", num_classes=10, in_channels=1)
        models.load_checkpoint("audit/retrained.safetensors", made)
        torch.manual_seed(1000)
        expected = models.build("own_net:build", num_classes=10, in_channels=1)
        recipe = Recipe(**json.loads(models.read_metadata("original.safetensors")["recipe"]))
        fit(expected, [Pass([DataPart(retain)])], recipe, RunOptions(seed=1000))
        assert same(made, expected)
        assert self.run(f"references --model original.safetensors {own} --num-models 2 --out refs") == 0

    def test_start_weights(self, here: None, capsys) -> None:
        small, training = f"{CLI} --width 4", "--epochs 1 --batch-size 256"
        start = models.build("small-cnn", num_classes=10, in_channels=1, width=4)
        save_file(start.state_dict(), "start.safetensors")
        assert self.run(f"train --model small-cnn {small} {training} --init start.safetensors --out m.safetensors") == 0
        assert models.read_metadata("m.safetensors")["init"] == describe_init(start.state_dict())
        forget = f"forget --model m.safetensors {CLI} --ids 0-19 --method ft --epochs 1 --retrain --out out"
        capsys.readouterr()
        assert self.run(forget) == 2
        told = capsys.readouterr().err
        assert "init must be the initial weights of the checkpoint's training, weights" in told
        assert "(on the command line --init)" in told
        assert not os.path.exists("out/model.safetensors")
        assert self.run(f"{forget} --init start.safetensors") == 0
        references = f"references --model m.safetensors {CLI} --num-models 2 --out refs --init"
        assert self.run(f"{references} m.safetensors") == 2
        assert self.run(f"{references} start.safetensors") == 0
        method = "compare --methods ft --seeds 1 --settings with --ids 0-19"
        assert self.run(f"{method} --model m.safetensors {CLI} --init start.safetensors --epochs 1 --out cmp") == 0
