"""The SalUn mask: against gradients by hand and by autograd, and its files."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext import InputError, MaskedSGD, saliency_mask
from amun_ext.saliency import FORMAT, SCORES, load_mask, save_mask


def refused(message: str, *given: object, **options: object) -> None:
    with pytest.raises(InputError, match=message):
        saliency_mask(*given, **options)


class Slopes(nn.Module):
    """Two classes, logits (w x + b, 0): at w = b = 0 the loss of label y has the gradient (y - 1/2) (x, 1)."""

    def __init__(self, features: int = 1, bias: bool = True, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(features, dtype=dtype))
        if bias:
            self.b = nn.Parameter(torch.zeros((), dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        z = x @ self.w + (self.b if hasattr(self, "b") else 0)
        return torch.stack([z, torch.zeros_like(z)], 1)


class Net(nn.Module):
    """With all that a forward pass may leave a trace in, and parameters that it never uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4 * 16, 3)
        self.unused = nn.Parameter(torch.randn(5))
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.head(self.drop(self.norm(self.conv(x)).relu()).flatten(1))


@pytest.fixture
def net() -> Net:
    net = Net().double()
    net.norm.running_mean.uniform_(-0.1, 0.1)
    net.norm.bias.data.fill_(1.0)  # so that no channel is dead
    return net.train()


@pytest.fixture
def forget() -> TensorDataset:
    return TensorDataset(torch.rand(23, 2, 6, 6).double(), torch.randint(0, 3, (23,)))


def expected_scores(net: nn.Module, forget: TensorDataset) -> dict[str, Tensor]:
    net = copy.deepcopy(net).eval()
    net.zero_grad()
    for image, label in forget:
        nn.functional.cross_entropy(net(image[None]), label[None]).backward()
    found = {name: p for name, p in net.named_parameters() if p.requires_grad}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.abs() for name, p in found.items()}


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


class TestByHand:
    # Their gradients are (-1, -1/2), (1, 1/2) and (-1/4, -1/2): the sum is (-1/4, -1/2), that of absolutes (9/4, 3/2).
    forget = TensorDataset(torch.tensor([[2.0], [2.0], [0.5]], dtype=torch.float64), torch.tensor([0, 1, 0]))

    def test_absolute_of_the_sum(self) -> None:
        for batch_size in (1, 2, 3, 256):
            mask = saliency_mask(Slopes(), self.forget, 0.5, batch_size=batch_size)
            assert mask["w"].tolist() == [False]
            assert mask["b"].item() is True

    def test_sum_of_the_absolutes_of_batches(self) -> None:
        for batch_size, kept in ((1, "w"), (2, "b"), (3, "b")):  # in a batch of two the first samples cancel
            mask = saliency_mask(Slopes(), self.forget, 0.5, score="sum_abs", batch_size=batch_size)
            assert [name for name, part in mask.items() if part.all()] == [kept]

    def test_a_small_last_batch_weighs_no_more(self) -> None:
        # Gradients (1, 0) and (1, 0), then (0, 3/2): of sums 2 and 3/2, of means 1 and 3/2.
        forget = TensorDataset(torch.tensor([[2.0, 0], [2, 0], [0, 3]]).double(), torch.tensor([1, 1, 1]))
        for score in SCORES:
            mask = saliency_mask(Slopes(2, bias=False), forget, 0.5, score=score, batch_size=2)
            assert mask["w"].tolist() == [True, False]

    def test_true_labels_decide_the_sign(self) -> None:
        forget = TensorDataset(torch.tensor([[3.0, 2], [-3, 2]]).double(), torch.tensor([1, 0]))
        assert saliency_mask(Slopes(2, bias=False), forget, 0.5)["w"].tolist() == [True, False]
        turned = TensorDataset(forget.tensors[0], torch.tensor([1, 1]))
        assert saliency_mask(Slopes(2, bias=False), turned, 0.5)["w"].tolist() == [False, True]

    def test_equal_scores_go_by_their_order(self) -> None:
        forget = TensorDataset(torch.ones(4, 7).double(), torch.zeros(4, dtype=torch.long))
        for kept in range(1, 9):
            mask = saliency_mask(Slopes(7), forget, kept / 8)
            assert flat(mask).tolist() == [True] * kept + [False] * (8 - kept)
        weighted = forget.tensors[0] * torch.tensor([0, 1, 0, 2, 1, 1, 0])
        mask = saliency_mask(Slopes(7, bias=False), TensorDataset(weighted, forget.tensors[1]), 3 / 7)
        assert mask["w"].nonzero()[:, 0].tolist() == [1, 3, 4]

    def test_sums_of_a_half_model_are_float32(self) -> None:
        # 600 once against 700 times 1, which in bfloat16 ends at 256.
        images = torch.tensor([[1200.0, 0]] + [[0, 2.0]] * 700)
        forget = TensorDataset(images, torch.zeros(701, dtype=torch.long))
        model = Slopes(2, bias=False, dtype=torch.bfloat16)
        for score in SCORES:
            assert saliency_mask(model, forget, 0.5, score=score, batch_size=1)["w"].tolist() == [False, True]
        assert saliency_mask(model, forget, 0.5)["w"].dtype == torch.bool

    def test_the_loss_of_a_half_model_may_overflow(self) -> None:
        model = Slopes(2, bias=False, dtype=torch.float16)
        model.w.data += 100.0
        forget = TensorDataset(torch.tensor([[8.0, 2]] * 100), torch.ones(100, dtype=torch.long))  # 100 losses of 1000
        assert saliency_mask(model, forget, 0.5)["w"].tolist() == [True, False]


class TestRanking:
    @pytest.mark.parametrize("keep", [0.005, 0.1, 0.29, 0.5, 0.9, 0.999, 1.0, 1])
    def test_the_largest_of_all_parameters(self, net: Net, forget: TensorDataset, keep: float) -> None:
        scores, mask = flat(expected_scores(net, forget)), saliency_mask(net, forget, keep)
        assert {name: part.shape for name, part in mask.items()} == {n: p.shape for n, p in net.named_parameters()}
        chosen = flat(mask)
        assert chosen.dtype == torch.bool
        assert chosen.sum() == int(keep * len(scores))
        assert keep == 1 or scores[chosen].min() >= scores[~chosen].max() - 1e-12

    def test_batch_size_has_no_influence(self, net: Net, forget: TensorDataset) -> None:
        whole = flat(saliency_mask(net, forget))
        for batch_size in (1, 2, 7, 22, 23, 100):
            assert torch.equal(flat(saliency_mask(net, forget, batch_size=batch_size)), whole)

    def test_frozen_parameters_have_no_mask_and_unused_ones_come_last(self, net: Net, forget: TensorDataset) -> None:
        net.head.requires_grad_(False)
        mask = saliency_mask(net, forget, 0.5)
        assert [*mask] == ["unused", "scale", "conv.weight", "conv.bias", "norm.weight", "norm.bias"]
        assert not mask["unused"].any()
        assert sum(int(part.sum()) for part in mask.values()) == 45

    def test_tied_parameters_count_once(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double()
        model[1].weight = model[0].weight
        mask = saliency_mask(model, TensorDataset(torch.rand(5, 3).double(), torch.randint(0, 3, (5,))))
        assert [*mask] == ["0.weight", "0.bias", "1.bias"]
        assert sum(int(part.sum()) for part in mask.values()) == 7

    def test_every_mask_has_its_own_memory_and_one_layout(self, net: Net, forget: TensorDataset) -> None:
        usual = saliency_mask(net, forget, 0.3)
        for part in usual.values():
            assert part.untyped_storage().nbytes() == part.numel()
            assert part.is_contiguous()
        other = saliency_mask(net.to(memory_format=torch.channels_last), forget, 0.3)
        assert all(torch.equal(usual[name], other[name]) for name in usual)


class TestNoTrace:
    @pytest.mark.parametrize("score", SCORES)
    def test_model_and_random_state(self, net: Net, forget: TensorDataset, score: str) -> None:
        net.norm.eval()
        net.conv.bias.requires_grad_(False)
        net.head.weight.grad = torch.randn_like(net.head.weight)
        before, gradient, state = copy.deepcopy(net.state_dict()), net.head.weight.grad.clone(), torch.get_rng_state()
        saliency_mask(net, forget, score=score)
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
        assert [module.training for module in net.modules()] == [True, True, False, True, True]
        assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["conv.bias"]
        assert torch.equal(net.head.weight.grad, gradient)
        assert [name for name, p in net.named_parameters() if p.grad is not None] == ["head.weight"]
        assert torch.equal(state, torch.get_rng_state())

    def test_inputs_are_left_alone(self) -> None:
        class InPlace(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.mul_(2))

        images = torch.rand(5, 3)
        forget = TensorDataset(images, torch.randint(0, 2, (5,)))
        before = images.clone()
        saliency_mask(InPlace(3, 2), forget)
        assert torch.equal(images, before)

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_callers_without_gradients(self, net: Net, forget: TensorDataset, context) -> None:
        usual = flat(saliency_mask(net, forget))
        with context():
            made_here = TensorDataset(*(tensor.clone() for tensor in forget.tensors))
            for data in (forget, made_here):
                mask = saliency_mask(net, data)
                assert torch.equal(flat(mask), usual)
                assert not any(part.is_inference() for part in mask.values())

    @pytest.mark.same_inputs
    def test_devices(self, net: Net, forget: TensorDataset, device: str) -> None:
        usual = saliency_mask(net, forget)
        for data in (forget, TensorDataset(*(tensor.to(device) for tensor in forget.tensors))):
            mask = saliency_mask(net.to(device), data)
            assert all(part.device.type == device for part in mask.values())
            assert (flat(mask).cpu() == flat(usual)).float().mean() > 0.98

    def test_any_dataset(self, net: Net, forget: TensorDataset) -> None:
        items = [(image, int(label)) for image, label in forget]
        assert torch.equal(flat(saliency_mask(net, items)), flat(saliency_mask(net, forget)))


class TestBadInput:
    def test_options(self, net: Net, forget: TensorDataset) -> None:
        for fraction in (0, 0.0, -0.1, 1.01, float("nan"), "half", None):
            refused(r"fraction must be in \(0, 1\]", net, forget, fraction)
        refused(r"fraction must be at least one of the \d+ parameters", net, forget, 0.001)
        refused("score must be one of", net, forget, score="max")
        refused("batch_size must be", net, forget, batch_size=0)

    def test_models(self, net: Net, forget: TensorDataset) -> None:
        refused(r"model must be an nn\.Module", len, forget)
        refused("model must be trainable in some", copy.deepcopy(net).requires_grad_(False), forget)
        for part in (net.conv, net.norm, net.head, net):
            part.requires_grad_(False)
        net.unused.requires_grad_(True)
        refused("model must be a map to logits that depend on its trainable parameters", net, forget)

    def test_forget_sets(self, net: Net, forget: TensorDataset) -> None:
        images, labels = forget.tensors
        for message, tensors in {
            "forget must be non-empty": (images[:0], labels[:0]),
            "forget must be free of NaN": (images * torch.nan, labels),
            "forget must be floating point": (images.byte(), labels),
            r"forget labels must be in \[0, 3\)": (images, labels + 3),
            "forget labels must be not negative": (images, labels - 3),
            "forget labels must be integers": (images, labels.double()),
            "model must take inputs of shape": (images.flatten(1), labels),
        }.items():
            refused(message, net, TensorDataset(*tensors))

    def test_nan_weights(self, net: Net, forget: TensorDataset) -> None:
        net.scale.data.fill_(torch.nan)
        with pytest.raises(FloatingPointError, match=r"NaN or infinite in scale, conv\.weight, conv\.bias and 4 more"):
            saliency_mask(net, forget)
        assert net.training

    def test_half_gradients_that_overflow(self) -> None:
        forget = TensorDataset(torch.tensor([[60000.0, 1]] * 4), torch.zeros(4, dtype=torch.long))
        with pytest.raises(FloatingPointError, match="the gradient is NaN or infinite in w"):
            saliency_mask(Slopes(2, bias=False, dtype=torch.float16), forget)


class TestFiles:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "mask.safetensors"

    @pytest.fixture
    def model(self) -> nn.Module:
        model = nn.Module()
        for number, shape in enumerate([(), (1,), (8,), (9,), (3, 5, 7), (0,), (2, 0), (257, 300)]):
            model.register_parameter(f"p{number}", nn.Parameter(torch.zeros(shape)))
        model.register_parameter("frozen", nn.Parameter(torch.zeros(3), requires_grad=False))
        return model

    @pytest.fixture
    def mask(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: torch.rand(p.shape) < 0.5 for name, p in model.named_parameters() if p.requires_grad}

    def test_round_trip(self, path, model, mask, device) -> None:
        save_mask(path, {name: part.to(device) for name, part in mask.items()})
        loaded = load_mask(path, model.to(device))
        assert [*loaded] == [*mask]
        for name, part in mask.items():
            assert loaded[name].dtype == torch.bool
            assert loaded[name].device.type == device
            assert torch.equal(loaded[name].cpu(), part)  # shapes too

    def test_strides_do_not_matter_and_a_parameter_takes_a_bit(self, path, model, mask) -> None:
        mask["p7"] = mask["p7"].T.contiguous().T
        save_mask(path, mask)
        assert torch.equal(load_mask(path, model)["p7"], mask["p7"])
        count = sum(part.numel() for part in mask.values())
        assert count / 8 < path.stat().st_size < count / 8 + 150 * len(mask)

    def test_another_model(self, path, model, mask) -> None:
        save_mask(path, mask)
        model.frozen.requires_grad_(True)
        model.p1.requires_grad_(False)
        model.p4 = nn.Parameter(torch.zeros(7, 5, 3))
        shapes = r"p4 \(\[3, 5, 7\] in the file, \[7, 5, 3\] in the model\)"
        found = f"missing: frozen; unexpected: p1; other shape: {shapes}$"
        with pytest.raises(InputError, match=f"path must be a mask of the model's trainable .*safetensors, {found}"):
            load_mask(path, model)
        with pytest.raises(InputError, match="missing: weight, bias; unexpected: p0, p1, p2 and 5 more"):
            load_mask(path, nn.Linear(2, 2))
        with pytest.raises(InputError, match="model must be trainable"):
            load_mask(path, nn.ReLU())

    def test_damaged_files(self, path, model, mask) -> None:
        save_mask(path, mask)
        whole = path.read_bytes()
        path.unlink()
        for content in (None, b"no mask", bytes(range(256)) * 9, *(whole[:kept] for kept in (0, 7, 100, 400, -1))):
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(InputError, match="path must be a file that save_mask wrote"):
                load_mask(path, model)

    def test_files_of_others(self, path) -> None:
        shapes = {"shapes": json.dumps({"weight": [9], "bias": []})}
        bits = {"weight": torch.zeros(2, dtype=torch.uint8), "bias": torch.zeros(1, dtype=torch.uint8)}
        model = nn.Module()
        model.weight, model.bias = nn.Parameter(torch.zeros(9)), nn.Parameter(torch.zeros(()))
        save_file(bits, path, FORMAT | shapes)
        assert not flat(load_mask(path, model)).any()
        others = [
            (bits, None),
            (bits, shapes),
            (bits, FORMAT),
            (bits, FORMAT | shapes | {"version": "2"}),
            (bits, FORMAT | {"shapes": "[9"}),
            (bits, FORMAT | {"shapes": "[9]"}),
            (bits, FORMAT | {"shapes": '{"weight": 9, "bias": 1}'}),
            (bits | {"weight": torch.zeros(3, dtype=torch.uint8)}, FORMAT | shapes),
            (bits | {"weight": torch.zeros(2)}, FORMAT | shapes),
            (bits | {"more": torch.zeros(1, dtype=torch.uint8)}, FORMAT | shapes),
            ({"weight": bits["weight"]}, FORMAT | shapes),
        ]
        for tensors, metadata in others:
            save_file(tensors, path, metadata)
            with pytest.raises(InputError, match="path must be a file that save_mask wrote"):
                load_mask(path, model)

    @pytest.mark.parametrize("mask", [None, {}, [torch.ones(2).bool()], {"w": torch.ones(2)}, {"w": [True]}])
    def test_only_masks_are_saved(self, path, mask) -> None:
        with pytest.raises(InputError, match="mask must be bool tensors by name"):
            save_mask(path, mask)
        assert not path.exists()


def test_the_mask_of_a_model_with_frozen_layers_is_one_for_the_optimizer():
    """Which is given all parameters; a layer that is unfrozen afterwards has no mask, and is not moved without."""
    model = nn.Sequential(nn.Linear(4, 3).requires_grad_(False), nn.Linear(3, 2))
    data = TensorDataset(torch.rand(8, 4), torch.randint(2, (8,)))
    optimizer = MaskedSGD(model.named_parameters(), 0.1, masks=saliency_mask(model, data, 0.5))
    before = copy.deepcopy(model)
    model(data.tensors[0]).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before[0].weight)
    assert not torch.equal(model[1].weight, before[1].weight)
    model.requires_grad_(True)
    model(data.tensors[0]).sum().backward()
    with pytest.raises(InputError, match=r"every parameter with a gradient, got none for 0\.weight"):
        optimizer.step()
