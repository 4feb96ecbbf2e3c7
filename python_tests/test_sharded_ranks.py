"""Parameters that `fully_shard` has divided among the ranks."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rank_tools import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import TensorDataset

from amun_ext import InputError, MaskedSGD, saliency_mask
from amun_ext.models import save_checkpoint
from amun_ext.training import DataPart, Pass, Recipe, fit


def network() -> nn.Module:
    """With a first dimension that two does not divide, and one that leaves a rank without a row."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 1, 1), nn.Flatten(), nn.Linear(36, 3))


def trained(sharded: bool) -> tuple[nn.Module, list[Tensor]]:
    """By MaskedSGD, whose state is put into another one on the way."""
    model, generator = network(), torch.Generator().manual_seed(1)
    masks = {name: torch.rand(each.shape, generator=generator) < 0.5 for name, each in model.named_parameters()}
    images = torch.rand(6, 1, 8, 8, generator=generator)
    if sharded:
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2, "masks": masks}
    optimizer = MaskedSGD(model.named_parameters(), **options)
    for step in range(4):
        if step == 2:
            again = MaskedSGD(model.named_parameters(), **options)
            again.load_state_dict(optimizer.state_dict())
            optimizer = again
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, [each.full_tensor().detach() if sharded else each.detach() for each in model.parameters()]


def refusals(model: nn.Module, path: Path) -> list[str]:
    data = TensorDataset(torch.rand(6, 1, 8, 8), torch.arange(6) % 3)
    told = []
    for call in (
        lambda: fit(model, [Pass([DataPart(data)])], Recipe(epochs=1, lr=0.1)),
        lambda: saliency_mask(model, data),
        lambda: save_checkpoint(path, model, {}),
    ):
        try:
            call()
        except InputError as error:
            told.append(str(error))
    return told


def work(folder: Path) -> tuple[list[Tensor], list[str]]:
    model, weights = trained(sharded=True)
    return weights, refusals(model, folder / "model.safetensors")


@pytest.mark.slow
def test_masked_sgd_of_shards_is_that_of_one_process_and_the_rest_is_refused(tmp_path: Path) -> None:
    _, expected = trained(sharded=False)
    for outcome in run_ranks(work, 2, tmp_path):
        assert not isinstance(outcome, str), outcome
        weights, told = outcome
        for ours, theirs in zip(weights, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
        assert len(told) == 3
        assert all("not sharded by fully_shard" in line for line in told)
