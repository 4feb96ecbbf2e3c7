"""Modules of many kinds: what answers with an object, what was scripted or exported, what keeps tensors."""

import copy
import dataclasses
import types
from collections import deque

import numpy as np
import pytest
import torch
from method_tools import needs
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext import InputError, evaluate, find_min_adversarial, saliency_mask, unlearn
from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS

ONCE = Recipe(epochs=1, lr=0.01)


def net() -> nn.Sequential:
    torch.manual_seed(3)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
    return nn.Sequential(*layers).eval()


@pytest.fixture
def data() -> TensorDataset:
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    return TensorDataset(images, net()(images).argmax(1))


def halves(data: TensorDataset) -> tuple[TensorDataset, TensorDataset]:
    """A forget set and a retain set."""
    forget, retain = (TensorDataset(*(tensor[rows] for tensor in data.tensors)) for rows in (slice(4), slice(4, None)))
    return forget, retain


class Answering(nn.Module):
    """Its answer has logits beside other things, as that of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> types.SimpleNamespace:
        return types.SimpleNamespace(logits=self.net(x), hidden_states=None)


def test_an_output_with_logits_is_accepted(data: TensorDataset) -> None:
    plain, answering = net(), Answering().eval()
    expected, result = (find_min_adversarial(model, *data.tensors, method="ddn") for model in (plain, answering))
    assert torch.equal(expected.images, result.images)
    (forget, retain), test = halves(data), data
    for method in ("ft", "salun", "bs", "amun"):
        expected_model = unlearn(plain, forget, retain, method=method, recipe=ONCE)
        result_model = unlearn(answering, forget, retain, method=method, recipe=ONCE)
        for name, weight in expected_model.state_dict().items():
            assert torch.equal(weight, result_model.state_dict()[f"net.{name}"]), (method, name)
    told = [
        evaluate({"it": model}, forget=forget, retain=retain, test=test, baseline=None).rows
        for model in (plain, answering)
    ]
    assert str(told[0]) == str(told[1])


SCRIPTS = {
    "script": lambda model, x: torch.jit.script(model),
    "trace": lambda model, x: torch.jit.trace(model, x),
    "freeze": lambda model, x: torch.jit.freeze(torch.jit.script(model)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_script_is_searched_and_not_trained(data: TensorDataset, kind: str) -> None:
    scripted = SCRIPTS[kind](net(), data.tensors[0][:2])
    expected = find_min_adversarial(net(), *data.tensors, method="ddn", optimize_model=False)
    result = find_min_adversarial(scripted, *data.tensors, method="ddn")
    torch.testing.assert_close(result.distance, expected.distance, rtol=1e-4, atol=1e-6)
    must_be = "trainable in some parameter" if kind == "freeze" else "one whose deep copy can be trained"
    for method in ("ft", "salun", "amun"):
        with pytest.raises(InputError, match=f"^model must be {must_be}"):
            unlearn(scripted, *halves(data), method=method, recipe=ONCE)


def test_an_exported_module_is_refused(data: TensorDataset) -> None:
    images = data.tensors[0]
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(net(), (images,), dynamic_shapes=shapes).module()
    message = r"^model must be a module with train\(\) and eval\(\), such as that which was exported, got GraphModule"
    with pytest.raises(InputError, match=message):
        find_min_adversarial(exported, *data.tensors)
    with pytest.raises(InputError, match=message):
        unlearn(exported, data, method="ga", recipe=ONCE)
    with pytest.raises(InputError, match=message):
        evaluate({"it": exported}, forget=data, retain=data, test=data, baseline=None)


def test_a_model_of_inference_mode_is_refused(data: TensorDataset) -> None:
    with torch.inference_mode():
        model = net()
    for use in (
        find_min_adversarial,
        lambda model, *_: saliency_mask(model, data),
        lambda model, *_: unlearn(model, data),
    ):
        with pytest.raises(InputError, match=r"^model must be one that was made outside torch.inference_mode"):
            use(model, *data.tensors)


class Rounding(nn.Module):
    """Nothing before it gets a gradient, and its state is no tensor, as that of quantised layers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()

    def get_extra_state(self) -> object:
        return torch.qint8

    def set_extra_state(self, state: object) -> None:
        assert state == torch.qint8


@pytest.mark.filterwarnings("ignore:.*their gradient is zero:RuntimeWarning")
@pytest.mark.parametrize("method", METHODS)
def test_a_model_without_gradients_is_refused(data: TensorDataset, method: str) -> None:
    model, (forget, retain) = nn.Sequential(net(), Rounding()), halves(data)
    with pytest.raises(InputError, match=r"^(model|mask|forget) must be "):
        unlearn(model, forget, retain, method=method, recipe=ONCE, **needs(method, forget))


def test_state_that_is_no_tensor_can_be_retrained(data: TensorDataset) -> None:
    unlearn(nn.Sequential(Rounding(), net()), *halves(data), method="retrain", recipe=ONCE)


@dataclasses.dataclass
class Kept:
    features: Tensor


class Keeping(nn.Module):
    """Keeps its features: alone, in a list, and in containers that are there from the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.kept: list[Tensor] = []
        self.features: Tensor | None = None
        self.all: list[Tensor] = []
        self.latest: deque[Tensor] = deque(maxlen=2)
        self.named: dict[str, object] = {"length": 2}

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.net[:4](x)
        self.kept = [self.features]
        self.lately = self.features
        self.all.append(self.features)
        self.latest.append(self.features)
        self.named["features"] = self.features
        self.nested = {"by layer": [(self.features,)]}
        self.space = types.SimpleNamespace(features=self.features)
        self.record, self.set = Kept(self.features), {self.features}
        return self.net[4](self.features)  # type: ignore[no-any-return]


def normed(norm: object) -> nn.Module:
    model = net()
    model[0] = norm(model[0])  # type: ignore[operator]
    with torch.no_grad():
        model(torch.zeros(1, 1, 8, 8))  # from a graph that the norm itself begins with no module can be copied
    return model


KEEPING = {
    "features": Keeping,
    "weight_norm": lambda: normed(nn.utils.weight_norm),
    "spectral_norm": lambda: normed(nn.utils.spectral_norm),
    "parametrized": lambda: normed(nn.utils.parametrizations.weight_norm),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", KEEPING)
def test_no_graph_stays_in_the_model(data: TensorDataset, kind: str) -> None:
    model = KEEPING[kind]().eval()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    forget, retain = halves(data)
    saliency_mask(model, forget)
    find_min_adversarial(model, *data.tensors, method="ddn")
    unlearn(model, forget, retain, method="salun", recipe=ONCE)
    copy.deepcopy(model)
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert all(vars(module)[key] is value for key, value in before[name].items()), name
    if isinstance(model, Keeping):
        assert (model.all, list(model.latest), model.named) == ([], [], {"length": 2})


NUMBERS = {kind.__name__: kind(2) for kind in (np.int8, np.uint16, np.int32, np.int64, np.uint64)}


@pytest.mark.parametrize("kind", NUMBERS)
def test_integers_may_be_numpys(kind: str, data: TensorDataset) -> None:
    two, images = NUMBERS[kind], data.tensors[0]
    found = find_min_adversarial(net(), *data.tensors, batch_size=two, steps=two, refine=two)
    assert torch.equal(found.images, find_min_adversarial(net(), *data.tensors, batch_size=2, steps=2, refine=2).images)
    assert torch.equal(found.transfer(net(), batch_size=two).labels, found.transfer(net()).labels)
    forget, retain = halves(data)
    assert saliency_mask(net(), forget, batch_size=two).keys() == saliency_mask(net(), forget).keys()
    one, other = (unlearn(net(), forget, retain, method="ft", seed=seed, recipe=ONCE) for seed in (two, 2))
    assert torch.equal(one(images), other(images))


class Through(torch.autograd.Function):
    """Has a gradient, of which nothing arrives, as in a quantised layer."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> None:
        return None


class Apart(nn.Module):
    def __init__(self, cut: object) -> None:
        super().__init__()
        self.net, self.cut = net(), cut

    def forward(self, x: Tensor) -> Tensor:
        return self.cut(self.net(x))  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("method", ["ft", "rl", "ga", "salun", "l1-sparse", "retrain"])
@pytest.mark.parametrize("cut", [Tensor.detach, Through.apply], ids=["detached", "through"])
def test_a_model_that_cannot_be_trained_is_refused(cut: object, method: str, data: TensorDataset) -> None:
    message = "^model must be a map to logits that depend on its trainable parameters, got others$"
    with pytest.raises(InputError, match=message):
        unlearn(Apart(cut), *halves(data), method=method, recipe=ONCE)
