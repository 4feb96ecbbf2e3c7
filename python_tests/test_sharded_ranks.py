"""Models whose parameters `fully_shard` has divided among the ranks: as one process has them whole."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import rank_tools
import torch
import torch.distributed as dist
from rank_tools import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import TensorDataset

from amun_ext import InputError, find_min_adversarial, saliency_mask, unlearn
from amun_ext.distributed import alone
from amun_ext.models import load_checkpoint, save_checkpoint
from amun_ext.saliency import load_mask, save_mask
from amun_ext.sharded import whole
from amun_ext.training import DataPart, Epoch, Pass, Recipe, RunOptions, fit

RECIPE = Recipe(epochs=3, lr=0.1, batch_size=8, augment=True, weight_decay=1e-2)
ADAMW = replace(RECIPE, optimizer="adamw", lr=0.01)


def network() -> nn.Module:
    """With a first dimension that two does not divide, and one that leaves ranks without a row."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 1, 1), nn.Flatten(), nn.Linear(36, 3)
        return nn.Sequential(*layers).double()


def model() -> nn.Module:
    return shard(network())


def shard(made: nn.Module) -> nn.Module:
    """In a process group."""
    made.to(rank_tools.place)
    if dist.is_initialized():
        mesh = init_device_mesh(rank_tools.place, (dist.get_world_size(),))
        fully_shard(made[0], mesh=mesh)
        fully_shard(made, mesh=mesh)
    return made


def samples() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(25, 1, 8, 8, generator=generator).double()  # in batches of 8, 8 and 9
    return TensorDataset(images, torch.arange(25) % 3)


def masks() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {name: torch.rand(each.shape, generator=generator) < 0.5 for name, each in network().named_parameters()}


def trained(recipe: Recipe, **options: object) -> list[Tensor]:
    """The weights, and the losses and accuracies."""
    made, data = model(), samples()
    history = fit(made, [Pass([DataPart(data)])], recipe, RunOptions(seed=3, eval_sets={"all": data}, **options))
    told = [[epoch.loss, epoch.accuracy["all"]] for epoch in history]
    return [*weights(made), torch.tensor(told)]


def weights(made: nn.Module) -> list[Tensor]:
    return [whole(each).detach().cpu() for each in made.parameters()]


def resumed(recipe: Recipe, checkpoint: Path) -> list[Tensor]:
    def stop(epoch: Epoch) -> None:
        if epoch.number == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        trained(recipe, mask=masks(), checkpoint=checkpoint, on_epoch=stop)
    if not dist.is_initialized() or dist.get_rank() == 0:
        shutil.copy(checkpoint, checkpoint.with_suffix(".stopped"))
    return trained(recipe, mask=masks(), checkpoint=checkpoint)


def halves() -> tuple[TensorDataset, TensorDataset]:
    """To forget and to retain."""
    data = samples()
    return TensorDataset(*data[:9]), TensorDataset(*data[9:])


def unlearned(method: str, **options: object) -> list[Tensor]:
    made = model()
    assert unlearn(made, *halves(), method=method, recipe=RECIPE, copy=False, **options) is made
    return weights(made)


def by_examples() -> list[Tensor]:
    """Each rank searches with the whole network, alone."""
    with alone():
        examples = find_min_adversarial(network(), halves()[0], method="ddn")
    return unlearned("amun", adversarial=examples)


def read_again(folder: Path) -> list[Tensor]:
    """What was saved, in a model of other weights; and masks."""
    path, made, data = folder / "model.safetensors", model(), samples()
    other = network()
    fit(other, [Pass([DataPart(data)])], RECIPE)
    other = shard(other)
    save_checkpoint(path, made, {"trained": "no"})
    assert load_checkpoint(path, other) == {"trained": "no"}
    chosen = saliency_mask(made, data, 0.3)
    save_mask(folder / "mask.safetensors", chosen)
    for name, read in load_mask(folder / "mask.safetensors", made).items():
        assert torch.equal(whole(read), whole(chosen[name]))
    batches = saliency_mask(made, data, 0.3, score="sum_abs", batch_size=4)
    return [*weights(other), *(whole(each).cpu() for each in [*chosen.values(), *batches.values()])]


WAYS: dict[str, Callable[[Path], list[Tensor]]] = {
    "plain": lambda folder: trained(RECIPE),
    "pieces": lambda folder: trained(replace(RECIPE, accumulation_steps=2, channels_last=True)),
    "fewer samples than ranks": lambda folder: trained(replace(RECIPE, batch_size=1, epochs=1)),
    "masked": lambda folder: resumed(RECIPE, folder / "masked"),
    "masked adamw": lambda folder: resumed(ADAMW, folder / "masked-adamw"),
    "files": read_again,
    "salun": lambda folder: unlearned("salun"),
    "ssd": lambda folder: unlearned("ssd", mask=0.5),
    "amun": lambda folder: by_examples(),
}


def refusals(folder: Path) -> list[str]:
    """Of what needs a whole model; of one that is sharded in part."""
    data, passes, part = samples(), [Pass([DataPart(samples())])], network().to(rank_tools.place)
    fully_shard(part[0], mesh=init_device_mesh(rank_tools.place, (dist.get_world_size(),)))
    told = []
    for call in (
        lambda: unlearn(model(), *halves()),
        lambda: unlearn(model(), *halves(), method="scrub", copy=False),
        lambda: unlearn(model(), *halves(), method="msg", copy=False),
        lambda: find_min_adversarial(model(), data),
        lambda: fit(part, passes, RECIPE),
        lambda: fit(model(), passes, RECIPE, penalty=lambda *_: torch.zeros(())),
        lambda: fit(model(), passes, replace(RECIPE, spectral_norm=1.0)),
        lambda: fit(model(), passes, replace(RECIPE, precision="float16")),
    ):
        try:
            call()
        except InputError as error:
            told.append(str(error))
    return told


def work(folder: Path) -> tuple[dict[str, list[Tensor]], list[str]]:
    return {name: way(folder) for name, way in WAYS.items()}, refusals(folder)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_is_what_one_process_does_and_the_rest_is_refused(ranks: int, device: str, tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    expected = {name: way(one) for name, way in WAYS.items()}
    for outcome in run_ranks(work, ranks, tmp_path, device):
        assert not isinstance(outcome, str), outcome
        results, told = outcome
        for name, tensors in expected.items():
            torch.testing.assert_close(
                results[name], tensors, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
            )
        arguments = ["model"] * 5 + ["penalty", "spectral_norm", "precision"]
        assert [line.split()[0] for line in told] == arguments
    for name, recipe in {"masked": RECIPE, "masked-adamw": ADAMW}.items():  # one process goes on
        again = trained(recipe, mask=masks(), checkpoint=tmp_path / f"{name}.stopped")
        torch.testing.assert_close(again, expected[name.replace("-", " ")], rtol=1e-6, atol=1e-9)
