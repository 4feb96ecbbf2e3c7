"""Operator norms against the dense matrix of each layer, and what clipping promises."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext import models
from amun_ext.lipschitz import NormClipper, operator_norm, operator_norms, without_batch_norm
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.validation import InputError

LAYERS = {
    "padded": (nn.Conv2d(2, 3, 3, padding=1), (2, 5, 5)),
    "strided": (nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), (2, 6, 7)),
    "valid": (nn.Conv2d(1, 3, 2), (1, 4, 4)),
    "dilated groups": (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2), (4, 5, 5)),
    "same": (nn.Conv2d(2, 2, 3, padding="same"), (2, 4, 4)),
    "pointwise": (nn.Conv2d(3, 5, 1, stride=2), (3, 5, 5)),
    "sequence": (nn.Conv1d(2, 3, 3, padding=1), (2, 8)),
    "dense": (nn.Linear(7, 4), (7,)),
}


def dense(layer: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """Its matrix, a column for each element of the input."""
    size = torch.Size(shape).numel()
    with torch.no_grad():
        columns = layer(torch.eye(size, dtype=torch.float64).view(size, *shape)) - layer(
            torch.zeros(1, *shape, dtype=torch.float64)
        )
    return columns.flatten(1).T


@pytest.mark.parametrize("name", LAYERS)
def test_norm_is_the_largest_singular_value(name: str) -> None:
    layer, shape = LAYERS[name]
    layer = layer.double()
    exact = float(torch.linalg.matrix_norm(dense(layer, shape), 2))
    assert operator_norm(layer, shape, 2000) == pytest.approx(exact, rel=1e-4)
    assert operator_norm(layer, shape, 5) <= exact * (1 + 1e-9)


def test_other_layers_are_refused() -> None:
    for layer in (nn.ReLU(), nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")):
        with pytest.raises(InputError, match="layer must be"):
            operator_norm(layer, (1, 4, 4))


def test_zero_weights_have_norm_zero() -> None:
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    assert operator_norm(layer, (3,)) == 0.0


def network() -> nn.Module:
    return without_batch_norm(models.build("small-cnn", num_classes=4, in_channels=1, width=4))


@pytest.mark.same_inputs
def test_clipping_divides_only_what_is_above_the_limit() -> None:
    model, like = network(), torch.zeros(1, 8, 8)
    with torch.no_grad():
        model[0].weight.mul_(100)
        model[3].weight.mul_(0.01)
    before = {name: each.clone() for name, each in model.named_parameters()}
    NormClipper(model, like, 0.5).restart()
    after = dict(model.named_parameters())
    ratio = after["0.weight"] / before["0.weight"]
    assert torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio))
    assert torch.equal(after["3.weight"], before["3.weight"])
    assert max(operator_norms(model, like).values()) <= 0.5 * 1.02


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.same_inputs
def test_training_keeps_the_limit_and_the_network_its_bound(batch_norm: bool) -> None:
    model = models.build("small-cnn", num_classes=4, in_channels=1, width=4) if batch_norm else network()
    images, labels = torch.rand(40, 1, 8, 8), torch.randint(0, 4, (40,))
    recipe = Recipe(3, 0.5, batch_size=10, spectral_norm=1.0)
    fit(model, [Pass([DataPart(TensorDataset(images, labels))])], recipe)
    norms = operator_norms(model, images[0])
    assert max(norms.values()) <= 1.02
    if not batch_norm:  # layers, ReLU and averaging in between stretch nothing
        bound = torch.tensor(list(norms.values())).prod()
        one, other = torch.rand(2, 200, 1, 8, 8)
        with torch.no_grad():
            logits = (model(one) - model(other)).norm(dim=1)
        assert (logits <= bound * (one - other).flatten(1).norm(dim=1) * (1 + 1e-5)).all()


def test_a_stopped_training_goes_on_as_if_it_had_not(tmp_path) -> None:
    images, labels = torch.rand(40, 1, 8, 8), torch.randint(0, 4, (40,))
    data, start = [Pass([DataPart(TensorDataset(images, labels))])], network().state_dict()

    def trained(checkpoint, stop: int | None = None) -> nn.Module:
        def at(epoch) -> None:
            if epoch.number == stop:
                raise KeyboardInterrupt

        model = network()
        model.load_state_dict(start)
        fit(
            model,
            data,
            Recipe(3, 0.5, batch_size=10, spectral_norm=1.0),
            RunOptions(checkpoint=checkpoint, on_epoch=at),
        )
        return model

    whole = trained(None)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "stopped.safetensors", stop=2)
    resumed = trained(tmp_path / "stopped.safetensors")
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_mask_and_a_limit_do_not_go_together() -> None:
    model, data = network(), TensorDataset(torch.rand(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64))
    mask = {name: torch.ones_like(each, dtype=torch.bool) for name, each in model.named_parameters()}
    with pytest.raises(InputError, match="spectral_norm must be None"):
        fit(model, [Pass([DataPart(data)])], Recipe(1, 0.1, spectral_norm=1.0), RunOptions(mask=mask))
