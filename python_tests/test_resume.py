"""A training that was stopped goes on from its checkpoint as if it had not been; no other file is taken for one."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training_tools
from kill_tools import HANG
from safetensors.torch import save_file
from torch import Tensor, nn
from training_tools import FORKS, TRAININGS, Items, equal, interrupt, linear_net, part, positive, state

from amun_ext import InputError
from amun_ext.training import DataPart, Epoch, Pass, Recipe, RunOptions, fit

pytestmark = pytest.mark.filterwarnings(FORKS)
RECIPE = Recipe(3, 0.1, schedule="step:1", batch_size=8)


@pytest.fixture(scope="module")
def killed(once) -> Path:
    """The files of trainings whose processes were killed in the middle of an epoch."""

    def kill(folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-W", "ignore", training_tools.__file__, str(folder)]
        subprocess.run(command, check=True, env=environment, timeout=HANG)

    return once("killed-trainings", kill)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint"


@pytest.fixture
def data() -> list[Pass]:
    return [Pass([part()])]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_killed_training_resumes_bit_by_bit(killed: Path, name: str) -> None:
    training, epochs = TRAININGS[name], []
    whole = training.run(None, on_epoch=epochs.append)
    assert [each.number for each in epochs] == [1, 2, 3, 4]
    epochs.clear()
    resumed = training.run(killed / name, on_epoch=epochs.append)
    assert [each.number for each in epochs] == [3, 4]
    assert (whole.forwards, resumed.forwards) == (28, 14)
    assert equal(resumed, whole)


def resumed(start: nn.Module, recipe: Recipe, path: Path, **run: object) -> nn.Module:
    """What was stopped after an epoch and has gone on, which is what has not been stopped."""
    data = [Pass([part()])]
    whole, stopped, model = (copy.deepcopy(start) for _ in range(3))
    fit(whole, data, recipe, RunOptions(**run))
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, data, recipe, RunOptions(**run, checkpoint=path, on_epoch=interrupt))
    fit(model, data, recipe, RunOptions(**run, checkpoint=path))
    assert equal(model, whole)
    assert not equal(model, stopped)
    return model


def test_the_scale_of_the_loss_is_restored(path: Path) -> None:
    """A new one would be too large at first, as it was at the start, and leave steps out."""

    class Narrow(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x.flatten(1))
            if logits.requires_grad:
                logits.register_hook(lambda grad: torch.where(grad.abs() > 900, math.inf, grad))
            return logits

    resumed(Narrow(12, 3), Recipe(2, 0.1, batch_size=2, precision="float16"), path)


@pytest.mark.parametrize("masked", [False, True])
def test_tied_weights(path: Path, masked: bool) -> None:
    start = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
    start[3].weight = start[1].weight
    mask = {name: torch.rand(each.shape) < 0.5 for name, each in start.named_parameters()}
    model = resumed(start, Recipe(3, 0.1, batch_size=8), path, mask=mask if masked else None)
    assert model[1].weight is model[3].weight
    frozen = ~mask["1.weight"]
    assert torch.equal(model[1].weight[frozen], start[1].weight[frozen]) == masked


def test_a_finished_training_is_read(data: list[Pass], tmp_path: Path) -> None:
    model, path = linear_net(), tmp_path / "new" / "folder" / "checkpoint"
    again = copy.deepcopy(model)
    history = fit(model, data, RECIPE, RunOptions(checkpoint=path))
    before = path.read_bytes()
    assert fit(again, data, RECIPE, RunOptions(checkpoint=path)) == history
    assert [each.lr for each in history] == pytest.approx([0.1, 0.01, 0.001])
    assert equal(again, model)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["checkpoint"]


def test_of_another_training_is_refused(path: Path) -> None:
    model, first, second = linear_net(), part(), part()
    start, mask = copy.deepcopy(model), positive(model)
    frozen = copy.deepcopy(start)
    frozen[1].bias.requires_grad_(False)

    def passes(second: DataPart = second, ascend: bool = True, **options: object) -> list[Pass]:
        return [Pass([first]), Pass([DataPart(second.data, **options)], ascend=ascend)]

    this = {"passes": passes(), "recipe": RECIPE, "mask": mask, "settings": 1, "description": "this"}

    def train(model: nn.Module, passes, recipe, settings, description, **run: object) -> None:
        run = RunOptions(checkpoint=path, **run)
        fit(model, passes, recipe, run, settings=settings, description=description)

    train(model, **this)
    for other in (
        {"recipe": Recipe(4, 0.1, batch_size=8)},
        {"seed": 1},
        {"mask": None},
        {"mask": {name: ~each for name, each in mask.items()}},
        {"mask_gradient_only": True},
        {"settings": 2},
        {"description": "that"},
        {"passes": [Pass([first, second])]},
        {"passes": passes()[::-1]},
        {"passes": passes(ascend=False)},
        {"passes": passes(augment=False)},
        {"passes": passes(labels=lambda epoch: torch.zeros(20, dtype=torch.long))},
        {"passes": passes(targets=torch.ones(20, 3))},
        {"passes": passes(part())},
        {"passes": passes(DataPart(Items(second.data)))},
        {"model": linear_net()},
        {"model": frozen, "mask": {"1.weight": mask["1.weight"]}},
    ):
        model = other.get("model", start)
        before = state(model)
        with pytest.raises(InputError, match=r"^checkpoint must be a new file or one of this training"):
            train(**{"model": model} | this | other)
        assert equal(model, before)


@pytest.mark.parametrize("damage", ["shorter", "other", "empty", "flipped", "folder"])
def test_damaged_is_refused(data: list[Pass], path: Path, damage: str) -> None:
    model = linear_net()
    start = copy.deepcopy(model)
    fit(model, data, RECIPE, RunOptions(checkpoint=path))
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        changed = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
        path.write_bytes({"shorter": whole[:-40], "other": b"{}" * 400, "empty": b"", "flipped": changed}[damage])
    before = state(start)
    with pytest.raises(InputError, match=r"^checkpoint must be"):
        fit(start, data, RECIPE, RunOptions(checkpoint=path))
    assert equal(start, before)


def test_a_full_disk_leaves_the_former_file(data: list[Pass], path: Path, monkeypatch) -> None:
    model, former = linear_net(), []
    start, whole = copy.deepcopy(model), copy.deepcopy(model)

    def full(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
        if path.exists():
            former.append(path.read_bytes())
            file.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        save_file(tensors, file, metadata)

    with monkeypatch.context() as patch:
        patch.setattr("amun_ext.files.save_file", full)
        with pytest.raises(OSError, match="No space left"):
            fit(model, data, RECIPE, RunOptions(checkpoint=path))
    assert all(each.grad is None for each in model.parameters())
    assert path.read_bytes() == former[0]
    assert [each.name for each in path.parent.iterdir()] == ["checkpoint"]
    epochs: list[Epoch] = []
    fit(start, data, RECIPE, RunOptions(checkpoint=path, on_epoch=epochs.append))
    fit(whole, data, RECIPE)
    assert [each.number for each in epochs] == [2, 3]
    assert equal(start, whole)


def test_its_folder_is_checked_before_the_training(data: list[Pass], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = linear_net()
    start = state(model)
    for path in (tmp_path, tmp_path / "file" / "checkpoint", tmp_path / "file" / "folder" / "checkpoint"):
        with pytest.raises(InputError, match=r"^checkpoint must be a file in a folder that can be written to"):
            fit(model, data, RECIPE, RunOptions(checkpoint=path))
    assert equal(model, start)
