"""Networks as torchvision gives them, of 224 pixels and 1,000 classes, with a state dict: a whole request."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_tools import told
from torch import nn

from amun_ext import cli
from amun_ext.data import ImageDataset, Splits
from amun_ext.data.vision import import_torchvision

CLASSES = 1000
IMAGES, TEST = 6, 4


class Normalised(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images - 0.45) / 0.225)


def resnet50(num_classes: int = CLASSES, in_channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return Normalised(import_torchvision().models.resnet50(num_classes=num_classes))


def vit_b_32(num_classes: int = CLASSES, in_channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    network = import_torchvision().models.vit_b_32(num_classes=num_classes)
    nn.init.trunc_normal_(network.heads.head.weight, std=0.02)  # torchvision's zeros give no gradient
    return Normalised(network)


def _splits(network: Callable[[], nn.Module]) -> Splits:
    """Random images with the classes that the untrained network gives them."""
    images = torch.rand(IMAGES + TEST, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = network().eval()(images).argmax(1)
    sets = [ImageDataset(images[rows], labels[rows]) for rows in (slice(IMAGES), slice(IMAGES, None))]
    return Splits(*sets, classes=tuple(map(str, range(CLASSES))))


def resnet50_data() -> Splits:
    return _splits(resnet50)


def vit_b_32_data() -> Splits:
    return _splits(vit_b_32)


@pytest.mark.slow
@pytest.mark.parametrize("network", [resnet50, vit_b_32])
def test_state_dict_is_unlearned(network: Callable[[], nn.Module], tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    file, out, name = tmp_path / "state.pt", tmp_path / "forgotten", f"test_pretrained:{network.__name__}"
    torch.save(network().state_dict(), file)
    what = ["--model", str(file), "--arch", name, "--data", f"{name}_data", "--ids", "0,1", "--device", "cpu"]
    how = ["--epochs", "1", "--lr", "0.001", "--batch-size", "4", "--accumulation-steps", "2", "--out", str(out)]
    assert cli.main(["forget", *what, *how]) == 0
    report = told(out)
    assert report["search"]["found"] == 2
    assert len(report["rows"]) == 2
    assert 0 < report["search"]["median_distance"] < 10
