"""The masked step of SGD, as an op and as an optimiser: against its twin, torch.optim.SGD and closed forms."""

import copy
import io
import math
import pickle
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from pairs import pairs
from test_ops import DTYPES, TOLERANCE, assert_close
from torch import Tensor, nn

from amun_ext import InputError, MaskedSGD, ops, reference
from amun_ext.ops import accumulate_dtype

HALF = (torch.float16, torch.bfloat16)
KEEPS = [pytest.param(dtype, None, id=str(dtype).removeprefix("torch.")) for dtype in TOLERANCE]
KEEPS += [pytest.param(dtype, torch.float32, id=f"{dtype}, float32".removeprefix("torch.")) for dtype in HALF]

# Each option alone, and all that go together.
OPTION_SETS = {
    "plain": {},
    "decay": {"weight_decay": 0.3},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    "maximize": {"momentum": 0.9, "maximize": True, "weight_decay": 0.1},
    "first": {"momentum": 0.9, "dampening": 0.4, "first": True, "nesterov": False},
    "first, nesterov": {"momentum": 0.9, "nesterov": True, "first": True, "weight_decay": 0.1},
    "gradient only": {"momentum": 0.9, "weight_decay": 0.1, "gradient_only": True},
    "gradient only, nesterov": {"momentum": 0.9, "nesterov": True, "gradient_only": True, "maximize": True},
}
RULES = [pytest.param(rule, id=name) for name, rule in OPTION_SETS.items()]
BLOCK = 4096  # of csrc/masked_sgd.h
SHAPES = [(), (1,), (7, 3), (33,), (0, 4), (BLOCK,), (2, BLOCK + 1), (64, 3, 3, 3)]


def bits(tensor: Tensor) -> Tensor:
    """Equal where every bit is, also of NaN and of zeros of either sign."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


@dataclass
class Lists:
    params: list[Tensor]
    grads: list[Tensor]
    momentum_buffers: list[Tensor]
    masks: list[Tensor]

    @classmethod
    def draw(cls, shapes, dtype=torch.float32, device="cpu", keep=None, density=0.5) -> "Lists":
        def randoms(dtype: torch.dtype) -> list[Tensor]:
            return [torch.randn(shape, dtype=torch.float64).to(device, dtype) for shape in shapes]

        masks = [(torch.rand(shape) < density).to(device) for shape in shapes]
        return cls(randoms(dtype), randoms(dtype), randoms(keep or dtype), masks)

    def copy(self, device=None, double: bool = False) -> "Lists":
        def one(tensor: Tensor) -> Tensor:
            dtype = torch.float64 if double and tensor.is_floating_point() else tensor.dtype
            return tensor.to(device, dtype, copy=True)

        return Lists(*([one(tensor) for tensor in tensors] for tensors in vars(self).values()))

    def step(self, op, lr=0.1, **rule) -> None:
        op(self.params, self.grads, self.momentum_buffers if rule.get("momentum") else [], self.masks, lr, **rule)

    def written(self) -> list[Tensor]:
        return [*self.params, *self.momentum_buffers]


def assert_same_bits(results: list[Tensor], expected: list[Tensor]) -> None:
    for result, result_expected in zip(results, expected, strict=True):
        assert torch.equal(bits(result), bits(result_expected))


def check_masked_sgd(op, lists: Lists, **rule) -> None:
    """`op` does what its twin does in the same dtype and in float64, and what the op does on the CPU; where the mask is
    False, it does nothing."""
    before = lists.copy()
    lists.step(op, **rule)
    for twin, expected in (
        (reference.masked_sgd_, before.copy()),
        (reference.masked_sgd_, before.copy(double=True)),
        (ops.masked_sgd_, before.copy(device="cpu")),
    ):
        expected.step(twin, **rule)
        for result, result_expected in zip(lists.written(), expected.written(), strict=True):
            assert_close(result, result_expected.to(result.device), result.dtype)
    assert_same_bits([*lists.grads, *lists.masks], [*before.grads, *before.masks])
    if not rule.get("gradient_only"):
        kept = [torch.zeros_like(was) if rule.get("first") else was for was in before.momentum_buffers]
        for mask, *pairs in zip(
            lists.masks, lists.params, before.params, lists.momentum_buffers, kept, strict=bool(lists.masks)
        ):
            assert_same_bits([tensor[~mask] for tensor in pairs[::2]], [tensor[~mask] for tensor in pairs[1::2]])


class TestMaskedSgdRules:
    @pytest.mark.parametrize(("dtype", "keep", "density", "rule"), pairs(KEEPS, [0.0, 0.5, 1.0], RULES))
    def test_matches_the_reference(self, device, dtype, keep, density, rule):
        check_masked_sgd(ops.masked_sgd_, Lists.draw(SHAPES, dtype, device, keep, density), **rule)

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize(("dtype", "keep"), KEEPS)
    def test_without_masks_everything_is_updated(self, device, dtype, keep, rule):
        lists = Lists.draw(SHAPES, dtype, device, keep, density=1.0)
        open_ = lists.copy()
        open_.masks = []
        check_masked_sgd(ops.masked_sgd_, open_, **rule)
        lists.step(ops.masked_sgd_, **rule)
        assert_same_bits(open_.written(), lists.written())


class TestMaskedSgd:
    @pytest.mark.parametrize(
        ("rule", "param", "buffer"),
        [  # of param 1, gradient 2, momentum 3 and lr 0.1, by hand
            ({}, 1 - 0.1 * 2, None),
            ({"weight_decay": 0.2}, 1 - 0.1 * 2.2, None),
            ({"weight_decay": 0.2, "maximize": True}, 1 + 0.1 * 1.8, None),
            ({"momentum": 0.9}, 1 - 0.1 * 4.7, 4.7),
            ({"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.2}, 1 - 0.1 * 3.8, 3.8),
            ({"momentum": 0.9, "dampening": 0.5, "first": True}, 1 - 0.1 * 2, 2),
            ({"momentum": 0.9, "nesterov": True, "weight_decay": 0.2}, 1 - 0.1 * (2.2 + 0.9 * 4.9), 4.9),
            ({"momentum": 0.9, "nesterov": True, "first": True}, 1 - 0.1 * (2 + 0.9 * 2), 2),
            ({"momentum": 0.9, "maximize": True, "weight_decay": 0.2}, 1 - 0.1 * 0.9, 0.9),
        ],
    )
    def test_by_hand(self, device, rule, param, buffer):
        def full(value: float) -> list[Tensor]:
            return [torch.full((5,), value, dtype=torch.float64, device=device)]

        mask = torch.tensor([True, False, True, False, True], device=device)
        lists = Lists(full(1.0), full(2.0), full(3.0), [mask])
        lists.step(ops.masked_sgd_, **rule)
        frozen = 0.0 if rule.get("first") else 3.0
        expected = full(param)[0].where(mask, 1.0), full(buffer or 3.0)[0].where(mask, frozen)
        torch.testing.assert_close((lists.params[0], lists.momentum_buffers[0]), expected, rtol=0, atol=1e-15)

    def test_gradient_only_by_hand(self, device):
        """Weight decay and momentum go on where the gradient does not: 0.9 * 3 + 0.2 * 1."""
        one = torch.ones(2, dtype=torch.float64, device=device)
        param, buffer, mask = one.clone(), 3 * one, torch.tensor([True, False], device=device)
        rule = {"momentum": 0.9, "weight_decay": 0.2, "gradient_only": True}
        ops.masked_sgd_([param], [2 * one], [buffer], [mask], 0.1, **rule)
        torch.testing.assert_close(buffer, one.new_tensor([4.9, 2.9]), rtol=0, atol=1e-15)
        torch.testing.assert_close(param, one.new_tensor([0.51, 0.71]), rtol=0, atol=1e-15)

    @pytest.mark.parametrize(
        ("dtype", "keep", "value", "rule"), pairs(KEEPS, [torch.nan, torch.inf, -torch.inf], RULES)
    )
    def test_what_is_not_finite_at_frozen_places_does_no_harm(self, device, dtype, keep, value, rule):
        lists = Lists.draw([(100, 41)], dtype, device, keep)
        clean, frozen = lists.copy(), ~lists.masks[0]
        lists.grads[0][frozen] = value
        lists.step(ops.masked_sgd_, **rule)
        clean.step(ops.masked_sgd_, **rule)
        assert_same_bits(lists.written(), clean.written())

    @pytest.mark.parametrize(("dtype", "keep"), KEEPS)
    def test_a_frozen_nan_keeps_its_bits(self, device, dtype, keep):
        lists = Lists.draw([(500,)], dtype, device, keep)
        for tensor in lists.written():
            patterns = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]
            tensor.copy_(torch.full(tensor.shape, -3, dtype=patterns).view(tensor.dtype))
            assert tensor.isnan().all()
        before = lists.copy()
        lists.step(ops.masked_sgd_, momentum=0.9, weight_decay=0.1)
        frozen = ~lists.masks[0]
        assert_same_bits([each[frozen] for each in lists.written()], [each[frozen] for each in before.written()])

    @pytest.mark.parametrize(("dtype", "keep"), KEEPS)
    def test_the_first_step_does_not_look_at_the_momentum(self, device, dtype, keep):
        lists = Lists.draw([(300, 5)], dtype, device, keep)
        twin = lists.copy()
        lists.momentum_buffers[0].fill_(torch.nan)
        for each in (lists, twin):
            each.step(ops.masked_sgd_, momentum=0.9, nesterov=True, first=True)
        assert_same_bits(lists.written(), twin.written())
        assert (lists.momentum_buffers[0][~lists.masks[0]] == 0).all()

    def test_many_tensors_of_all_dtypes_in_one_call(self, device):
        shapes = [(size % 11, size % 5 + 1) for size in range(100)]
        parts = [Lists.draw(shapes, *keep.values[:1], device, *keep.values[1:]) for keep in KEEPS]
        lists = Lists(*([tensor for part in parts for tensor in vars(part)[name]] for name in vars(parts[0])))
        check_masked_sgd(ops.masked_sgd_, lists, momentum=0.9, weight_decay=0.1)

    @pytest.mark.parametrize("offset", [1, 2, 3, 5])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_data_that_is_not_aligned(self, device, dtype, offset):
        wide = Lists.draw([(BLOCK + 99,)] * 3, dtype, device)
        lists = Lists(*([tensor[offset + i :] for i, tensor in enumerate(tensors)] for tensors in vars(wide).values()))
        for i, mask in enumerate(wide.masks):  # not as far off as the others
            lists.masks[i] = mask[: lists.params[i].numel()]
        outside = [tensor[:offset].clone() for tensor in wide.written()]
        check_masked_sgd(ops.masked_sgd_, lists, momentum=0.9, weight_decay=0.1)
        assert_same_bits([tensor[:offset] for tensor in wide.written()], outside)

    def test_nothing_to_do(self, device):
        ops.masked_sgd_([], [], [], [], 0.1)
        check_masked_sgd(ops.masked_sgd_, Lists.draw([(0,), (3, 0)], device=device), momentum=0.9)

    def test_compiles_without_a_graph_break(self, device):
        def stepped(params, grads, buffers, masks):
            ops.masked_sgd_(params, [2 * grad for grad in grads], buffers, masks, 0.1, 0.9, nesterov=True)
            return [param + 1 for param in params]

        lists = Lists.draw([(3, 4), (5,)], device=device)
        again = lists.copy()
        compiled = torch.compile(stepped, backend="aot_eager", fullgraph=True)
        assert_same_bits(compiled(*vars(lists).values()), stepped(*vars(again).values()))
        assert_same_bits(lists.written(), again.written())

    def test_is_not_differentiable_and_says_what_it_writes(self, device):
        weight, scale = (torch.rand(3, device=device, requires_grad=True) for _ in range(2))
        loss = (weight * scale).sum()
        ops.masked_sgd_([weight], [torch.ones(3, device=device)], [], [], 0.1)
        assert weight.is_leaf
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def gaps(tensor: Tensor) -> Tensor:
    wide = torch.zeros(*tensor.shape, 2, dtype=tensor.dtype, device=tensor.device)
    wide[..., 0] = tensor
    return wide[..., 0]


# In which order the elements of a [N, C, H, W] lie in memory; the last one has others between them.
LAYOUTS = {
    "contiguous": Tensor.clone,
    "channels_last": lambda tensor: tensor.clone(memory_format=torch.channels_last),
    "transposed": lambda tensor: tensor.mT.clone(memory_format=torch.contiguous_format).mT,
    "gaps": gaps,
}


class TestMaskedSgdLayouts:
    @pytest.mark.parametrize(
        ("of_param", "of_others", "shape"),
        pairs(list(LAYOUTS), list(LAYOUTS), [(4, 3, 5, 6), (8, 7, 1, 1), (1, 2, 3, 1)]),
    )
    def test_do_not_matter(self, device, of_param, of_others, shape):
        plain = Lists.draw([shape, (5, 6, 2, 2)], device=device)
        rows = [list(map(LAYOUTS[of_param], plain.params))]
        rows += [list(map(LAYOUTS[of_others], tensors)) for tensors in list(vars(plain).values())[1:]]
        lists = Lists(*rows)
        strides = [tensor.stride() for tensor in lists.written()]
        for each in (plain, lists):
            each.step(ops.masked_sgd_, momentum=0.9, weight_decay=0.1)
        assert_same_bits(lists.written(), plain.written())
        assert [tensor.stride() for tensor in lists.written()] == strides

    def test_what_lies_between_a_parameters_elements_stays(self, device):
        wide = torch.randn(9, 2, device=device)
        before = wide.clone()
        ops.masked_sgd_([wide[:, 0]], [torch.ones(9, device=device)], [], [], 0.5)
        assert torch.equal(wide[:, 1], before[:, 1])
        assert torch.equal(wide[:, 0], before[:, 0] - 0.5)

    def test_a_gradient_that_is_one_number(self, device):
        param = torch.zeros(3, 4, device=device)
        ops.masked_sgd_([param], [torch.ones((), device=device).expand(3, 4)], [], [], 0.5)
        assert (param == -0.5).all()

    def test_strides_of_dimensions_of_size_one_do_not_count(self, device):
        param = torch.zeros(8, 1, 1, 7, device=device).permute(0, 3, 1, 2)
        grad = torch.ones(8, 7, 1, 1, device=device)
        assert param.stride() != grad.stride()
        assert ops.beside_param(grad, param) is grad


def zeros(*shape, dtype=torch.float32) -> list[Tensor]:
    return [torch.zeros(shape, dtype=dtype)]


class TestMaskedSgdErrors:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"grads": []}, "grads must be as many as params, 1, got 0"),
            ({"momentum_buffers": []}, "momentum_buffers must be 1 with momentum 0.9, got 0"),
            ({"momentum": 0.0}, "momentum_buffers must be 0 with momentum 0, got 1"),
            ({"masks": 2 * zeros(3, 4, dtype=torch.bool)}, "masks must be none or as many as params, 1, got 2"),
            ({"params": zeros(3, 4, dtype=torch.int32)}, r"params\[0\] must be float32, .*, got Int"),
            ({"params": zeros(3, 4, dtype=torch.complex64)}, r"params\[0\] must be float32, .*, got ComplexFloat"),
            ({"grads": zeros(3, 4, dtype=torch.float64)}, r"grads\[0\] must have dtype Float, got Double"),
            ({"momentum_buffers": zeros(3, 4, dtype=torch.float64)}, r"momentum_buffers\[0\] must .* got Double"),
            ({"masks": zeros(3, 4)}, r"masks\[0\] must have dtype Bool, got Float"),
            ({"grads": zeros(4, 3)}, r"grads\[0\] must have the shape of its parameter, \[3, 4\], got \[4, 3\]"),
            ({"grads": zeros(4)}, r"grads\[0\] must have the shape of its parameter, \[3, 4\], got \[4\]"),
            ({"momentum_buffers": zeros(1)}, r"momentum_buffers\[0\] must have the shape .*, got \[1\]"),
            ({"masks": zeros(12, dtype=torch.bool)}, r"masks\[0\] must have the shape .*, got \[12\]"),
            ({"lr": -0.1}, "lr must be finite and not negative, got -0.1"),
            ({"lr": math.nan}, "lr must be finite and not negative, got"),
            ({"momentum": math.inf}, "momentum must be finite and not negative, got inf"),
            ({"dampening": math.nan}, "dampening must be finite, got"),
            ({"weight_decay": -1.0}, "weight_decay must be finite and not negative, got -1"),
            (
                {"nesterov": True, "dampening": 0.5},
                "nesterov must come with momentum and without dampening, got 0.9 and",
            ),
        ],
        ids=lambda value: None if isinstance(value, str) else "-".join(value),
    )
    def test_wrong_arguments_are_named(self, device, change, message):
        arguments = {
            "params": zeros(3, 4),
            "grads": zeros(3, 4),
            "momentum_buffers": zeros(3, 4),
            "masks": zeros(3, 4, dtype=torch.bool),
            "lr": 0.1,
            "momentum": 0.9,
            **change,
        }
        for name, value in arguments.items():
            arguments[name] = [tensor.to(device) for tensor in value] if isinstance(value, list) else value
        with pytest.raises(RuntimeError, match=message):
            ops.masked_sgd_(**arguments)

    def test_nesterov_without_momentum(self, device):
        with pytest.raises(RuntimeError, match="nesterov must come with momentum and without dampening, got 0 and 0"):
            ops.masked_sgd_(zeros(1), zeros(1), [], [], 0.1, nesterov=True)

    def test_layouts_that_the_op_itself_refuses(self, device):
        """Whoever calls it without the wrapper, which copies such tensors."""
        op, rule = torch.ops.amun_ext.masked_sgd_.default, (0.1, 0.0, 0.0, 0.0, False, False, False, False)
        square, wide = torch.zeros(3, 3, device=device), torch.zeros(3, 6, device=device)
        with pytest.raises(RuntimeError, match=r"params\[1\] must be dense and without overlap, got strides \[6, 2\]"):
            op([square, wide[:, ::2]], [square.clone(), square.clone()], [], [], *rule)
        with pytest.raises(RuntimeError, match=r"params\[0\] must be dense and without overlap, got strides \[0, 1\]"):
            op([square[:1].expand(3, 3)], [square.clone()], [], [], *rule)
        with pytest.raises(
            RuntimeError, match=r"grads\[0\] must have the strides of its parameter, \[3, 1\], got \[1, 3\]"
        ):
            op([square], [square.clone().t()], [], [], *rule)

    @pytest.mark.parametrize("shared", ["grad", "buffer", "params"])
    def test_shared_memory(self, device, shared):
        param, other, third = (torch.zeros(3, device=device) for _ in range(3))
        grad, buffer = (param, other) if shared == "grad" else (other, param) if shared == "buffer" else (other, third)
        params = [param, param] if shared == "params" else [param]
        buffers = [buffer, torch.zeros(3, device=device)][: len(params)]
        with pytest.raises(RuntimeError, match="must not share memory"):
            ops.masked_sgd_(params, [grad] * len(params), buffers, [], 0.1, momentum=0.9)


# ---------------------------------------------------------------------------------------------------------- MaskedSGD


def draw_net(device="cpu", dtype=torch.float32) -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 3))
    return net.to(device, dtype)


def draw_masks(net: nn.Module, density: float = 0.5) -> dict[str, Tensor]:
    return {name: torch.rand(param.shape) < density for name, param in net.named_parameters()}


def give_gradients(*nets: nn.Module) -> None:
    """The same to all of them, in their dtypes and layouts."""
    for params in zip(*(net.parameters() for net in nets), strict=True):
        drawn = torch.randn(params[0].shape, dtype=torch.float64)
        for param in params:
            param.grad = torch.empty_like(param).copy_(drawn)


def momenta(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [optimizer.state[param]["momentum_buffer"] for group in optimizer.param_groups for param in group["params"]]


def assert_equal_nets(*nets: nn.Module) -> None:
    for net in nets[1:]:
        assert_same_bits(list(net.parameters()), list(nets[0].parameters()))


# All that torch.optim.SGD takes.
OPTION_NAMES = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
OPTIONS = [
    pytest.param(dict(zip(OPTION_NAMES, values, strict=True)), id="-".join(map(str, values)))
    for values in (
        (momentum, dampening, decay, nesterov, maximize)
        for momentum, dampening, nesterov in (
            (0, 0, False),
            (0, 0.5, False),
            (0.9, 0, False),
            (0.9, 0.5, False),
            (0.9, 0, True),
        )
        for decay in (0, 0.05)
        for maximize in (False, True)
    )
]
FULL = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05}


class TestMaskedSGDBesideSGD:
    @pytest.mark.parametrize(("dtype", "options", "masked"), pairs(DTYPES, OPTIONS, [False, True]))
    def test_equals_it_where_every_mask_is_true(self, device, dtype, options, masked):
        net = draw_net(device, dtype)
        # For half types SGD in float32, rounded after every step: its own rounds in between.
        twin = copy.deepcopy(net).to(accumulate_dtype(dtype))
        masks = draw_masks(net, 1.0) if masked else None
        optimizer = MaskedSGD(net.named_parameters(), 0.05, **options, masks=masks)
        expected = torch.optim.SGD(twin.parameters(), 0.05, **options)
        for _ in range(5):
            give_gradients(net, twin)
            for param, param_expected in zip(net.parameters(), twin.parameters(), strict=True):
                param_expected.grad.copy_(param.grad)
            optimizer.step()
            expected.step()
            pairs = list(zip(net.parameters(), twin.parameters(), strict=True))
            if options["momentum"]:
                pairs += zip(momenta(optimizer), momenta(expected), strict=True)
            for result, result_expected in pairs:
                assert_close(result.detach(), result_expected.detach(), dtype)
                result_expected.data.copy_(result)  # from one place to the next step: roundings do not add up

    @pytest.mark.parametrize("options", [{}, FULL, {"momentum": 0.9, "dampening": 0.5}], ids=str)
    def test_strict_is_to_restore_the_frozen_weights_and_their_momentum(self, device, options):
        net = draw_net(device, torch.float64)
        twin, masks = copy.deepcopy(net), draw_masks(net)
        optimizer = MaskedSGD(net.named_parameters(), 0.1, **options, masks=masks)
        expected = torch.optim.SGD(twin.parameters(), 0.1, **options)
        for _ in range(5):
            give_gradients(net, twin)
            frozen = [(param, param.detach().clone(), ~masks[name]) for name, param in twin.named_parameters()]
            kept = {param: state["momentum_buffer"].clone() for param, state in expected.state.items() if state}
            optimizer.step()
            expected.step()
            with torch.no_grad():
                for param, before, places in frozen:
                    param[places] = before[places]
                    if options.get("momentum"):
                        buffer = expected.state[param]["momentum_buffer"]
                        buffer[places] = kept.get(param, torch.zeros_like(param))[places]
        for param, param_expected in zip(net.parameters(), twin.parameters(), strict=True):
            assert_close(param.detach(), param_expected.detach(), torch.float64)

    def test_gradient_only_is_to_multiply_the_gradient(self, device):
        net = draw_net(device, torch.float64)
        twin, masks = copy.deepcopy(net), draw_masks(net)
        before = copy.deepcopy(net)
        optimizer = MaskedSGD(net.named_parameters(), 0.1, **FULL, masks=masks, gradient_only=True)
        expected = torch.optim.SGD(twin.parameters(), 0.1, **FULL)
        for _ in range(5):
            give_gradients(net, twin)
            for param, mask in zip(twin.parameters(), masks.values(), strict=True):
                param.grad *= mask.to(device)
            optimizer.step()
            expected.step()
        for param, param_expected in zip(net.parameters(), twin.parameters(), strict=True):
            assert_close(param.detach(), param_expected.detach(), torch.float64)
        for name, param in net.named_parameters():  # which is why it is not the default
            was = before.get_parameter(name)
            assert (param[~masks[name]] != was[~masks[name]]).equal(was[~masks[name]] != 0)

    def test_a_gradient_that_comes_late(self, device):
        """Its first step is its own, whatever step the others make."""
        nets = [draw_net(device, torch.float64)]
        nets.append(copy.deepcopy(nets[0]))
        options = {"momentum": 0.9, "dampening": 0.5}
        optimizers = [
            MaskedSGD(nets[0].parameters(), 0.1, **options),
            torch.optim.SGD(nets[1].parameters(), 0.1, **options),
        ]
        for step in range(6):
            give_gradients(*nets)
            for net in nets:
                if step < 3:
                    net[3].weight.grad = None
                net[0].bias.grad = None
            for optimizer in optimizers:
                optimizer.step()
        for param, expected in zip(*(net.parameters() for net in nets), strict=True):
            assert_close(param.detach(), expected.detach(), torch.float64)
        assert nets[0][0].bias not in optimizers[0].state

    def test_goes_on_from_its_state_dict(self, device):
        nets = [draw_net(device, torch.float64)]
        nets.append(copy.deepcopy(nets[0]))
        expected, optimizer = torch.optim.SGD(nets[0].parameters(), 0.1, **FULL), MaskedSGD(nets[1].parameters(), 9.0)
        give_gradients(*nets)
        expected.step()
        nets[1].load_state_dict(nets[0].state_dict())
        optimizer.load_state_dict(expected.state_dict())
        give_gradients(*nets)
        for each in (expected, optimizer):
            each.step()
        for param, param_expected in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
            assert_close(param.detach(), param_expected.detach(), torch.float64)

    @pytest.mark.parametrize("as_tensor", [False, True])
    def test_schedulers_of_learning_rate_and_momentum(self, device, as_tensor):
        nets = [draw_net(device, torch.float64)]
        nets.append(copy.deepcopy(nets[0]))
        optimizers, schedulers = [], []
        for kind, net in zip((MaskedSGD, torch.optim.SGD), nets, strict=True):
            lr = torch.tensor(0.1, dtype=torch.float64) if as_tensor else 0.1
            optimizers.append(kind(net.parameters(), lr, momentum=0.9))
            schedulers.append(torch.optim.lr_scheduler.OneCycleLR(optimizers[-1], 0.3, total_steps=8))
        for _ in range(7):
            give_gradients(*nets)
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                scheduler.step()
        for param, expected in zip(*(net.parameters() for net in nets), strict=True):
            assert_close(param.detach(), expected.detach(), torch.float64)


class TestMaskedSGD:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_what_is_frozen_keeps_every_bit(self, device, dtype):
        net = draw_net(device, dtype)
        masks = draw_masks(net)
        before = copy.deepcopy(net)
        optimizer = MaskedSGD(net.named_parameters(), 0.1, **FULL, masks=masks)
        for _ in range(3):
            give_gradients(net)
            for param in net.parameters():
                param.grad.abs_().add_(1)  # all steps go one way, so that none takes back what another did
            net[0].weight.grad[~masks["0.weight"]] = torch.nan
            optimizer.step()
        for (name, param), was in zip(net.named_parameters(), before.parameters(), strict=True):
            assert_same_bits([param[~masks[name]]], [was[~masks[name]]])
            assert (param[masks[name]] != was[masks[name]]).all()
            assert (optimizer.state[param]["momentum_buffer"][~masks[name]] == 0).all()

    def test_groups_have_their_own_options_and_masks(self, device):
        net = draw_net(device, torch.float64)
        masks, twin = draw_masks(net), copy.deepcopy(net)
        head = {f"3.{name}": masks.pop(f"3.{name}") for name in ("weight", "bias")}
        named = list(net.named_parameters())
        group = {"params": named[4:], "lr": 0.5, "momentum": 0.0, "weight_decay": 0.3, "maximize": True, "masks": head}
        optimizer = MaskedSGD([{"params": named[:2]}, {"params": named[2:4]}], 0.1, masks=masks, momentum=0.9)
        optimizer.add_param_group(group)
        assert group["masks"] is head  # the caller's own is left alone
        for _ in range(3):
            give_gradients(net, twin)
            optimizer.step()
            for name, param in twin.named_parameters():
                # With momentum 0.9 in the same direction it would be more than this.
                if name in head:
                    rule = {"weight_decay": 0.3, "maximize": True}
                    reference.masked_sgd_([param], [param.grad], [], [head[name].to(device)], 0.5, **rule)
        for name, param in net.named_parameters():
            if name in head:
                assert_close(param.detach(), twin.get_parameter(name).detach(), torch.float64)
            else:
                assert_same_bits([param[~masks[name]]], [twin.get_parameter(name)[~masks[name]]])
                assert "momentum_buffer" in optimizer.state[param]

    def test_a_closure_is_called_with_gradients_on(self, device):
        weight = nn.Parameter(torch.tensor([3.0], device=device))
        optimizer = MaskedSGD([weight], 0.5)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = weight.square().sum()
            loss.backward()
            return loss

        assert optimizer.step(closure) == 9
        assert weight == 0
        optimizer.zero_grad()
        assert weight.grad is None

    def test_hooks(self, device):
        net, seen = draw_net(device), []
        optimizer = MaskedSGD(net.parameters(), 0.1)
        optimizer.register_step_pre_hook(lambda *_: seen.append(net[0].weight.detach().clone()))
        optimizer.register_step_post_hook(lambda *_: seen.append(net[0].weight.detach().clone()))
        give_gradients(net)
        optimizer.step()
        assert not torch.equal(*seen)

    @pytest.mark.parametrize("how", ["deepcopy", "pickle"])
    def test_copies_go_on_alike(self, device, how):
        net = draw_net(device, torch.bfloat16)
        optimizer = MaskedSGD(
            net.named_parameters(), 0.1, **FULL, masks=draw_masks(net), gradient_only=True, state_dtype=torch.float32
        )
        give_gradients(net)
        optimizer.step()
        pair = net, optimizer
        twin, again = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
        assert (again.gradient_only, again.state_dtype) == (True, torch.float32)
        give_gradients(net, twin)
        for each in (optimizer, again):
            each.step()
        assert_equal_nets(net, twin)
        assert_same_bits(momenta(again), momenta(optimizer))
        with pytest.raises(InputError, match="masks must be there for every parameter"):
            again.add_param_group({"params": [("late", nn.Parameter(torch.zeros(3, device=device)))]})

    @pytest.mark.parametrize("state_dtype", [None, torch.float32])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_state_dict_brings_the_momentum_back_to_the_bit(self, device, dtype, state_dtype):
        net = draw_net(device, dtype).to(memory_format=torch.channels_last)
        masks = draw_masks(net)
        optimizer = MaskedSGD(net.named_parameters(), 0.1, **FULL, masks=masks, state_dtype=state_dtype)
        for _ in range(3):
            give_gradients(net)
            optimizer.step()
        file = io.BytesIO()
        torch.save((net.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        saved, state = torch.load(file, weights_only=True)
        assert "masks" not in str(state)

        twin = draw_net(device, dtype)
        again = MaskedSGD(twin.named_parameters(), masks=masks)
        twin.load_state_dict(saved)
        again.load_state_dict(state)
        kept = torch.float32 if dtype in HALF and state_dtype else dtype
        assert {buffer.dtype for buffer in momenta(again)} == {kept}
        assert_same_bits(momenta(again), momenta(optimizer))
        give_gradients(net, twin)
        for each in (optimizer, again):
            each.step()
        assert_equal_nets(net, twin)
        assert_same_bits(momenta(again), momenta(optimizer))

    def test_what_a_hook_makes_of_a_state_dict_is_what_is_loaded(self, device):
        net = draw_net(device)
        optimizer = MaskedSGD(net.parameters(), 0.1, momentum=0.9)
        give_gradients(net)
        optimizer.step()
        state = optimizer.state_dict()

        def double(_, given):
            state = {index: {"momentum_buffer": 2 * own["momentum_buffer"]} for index, own in given["state"].items()}
            return {**given, "state": state}

        expected = [2 * buffer for buffer in momenta(optimizer)]
        optimizer.register_load_state_dict_pre_hook(double)
        optimizer.load_state_dict(state)
        assert_same_bits(momenta(optimizer), expected)
        optimizer.load_state_dict({**state, "state": {}})
        assert not optimizer.state

    def test_state_dtype_of_other_precisions_is_their_own(self, device):
        net = draw_net(device, torch.float64)
        optimizer = MaskedSGD(net.parameters(), 0.1, momentum=0.9, state_dtype=torch.float32)
        give_gradients(net)
        optimizer.step()
        assert {buffer.dtype for buffer in momenta(optimizer)} == {torch.float64}

    def test_grad_scaler_leaves_out_a_step_that_overflowed(self, device):
        nets = [draw_net(device)]
        nets.append(copy.deepcopy(nets[0]))
        masks, scaler = draw_masks(nets[0]), torch.amp.GradScaler(device, init_scale=8.0)
        optimizers = [MaskedSGD(net.named_parameters(), 0.1, **FULL, masks=masks) for net in nets]
        images, labels = torch.randn(4, 2, 4, 4, device=device), torch.arange(4, device=device) % 3
        for overflows in (False, True, False):
            if not overflows:
                optimizers[1].zero_grad()
                F.cross_entropy(nets[1](images), labels).backward()
                optimizers[1].step()
            optimizers[0].zero_grad()
            scaler.scale(F.cross_entropy(nets[0](images), labels)).backward()
            if overflows:
                nets[0][3].bias.grad[1] = torch.inf
            scaler.step(optimizers[0])
            scaler.update()
        assert scaler.get_scale() == 4
        assert_equal_nets(*nets)  # scaled by powers of two

    def test_compiles_without_a_graph_break(self, device):
        nets = [draw_net(device)]
        nets.append(copy.deepcopy(nets[0]))
        masks = draw_masks(nets[0])
        optimizers = [MaskedSGD(net.named_parameters(), 0.1, **FULL, masks=masks) for net in nets]
        compiled = torch.compile(lambda: optimizers[1].step(), backend="aot_eager", fullgraph=True)
        for _ in range(3):
            give_gradients(*nets)
            optimizers[0].step()
            compiled()
        assert_equal_nets(*nets)

    @pytest.mark.parametrize("change", ["channels_last", "double", "bfloat16", "device"])
    def test_a_model_that_changes_between_steps(self, device, change):
        net = draw_net("cpu" if change == "device" else device)
        masks = draw_masks(net)
        optimizer = MaskedSGD(net.named_parameters(), 0.1, momentum=0.9, masks=masks)
        give_gradients(net)
        optimizer.step()
        before, kept = copy.deepcopy(net), [buffer.clone() for buffer in momenta(optimizer)]
        changes = {
            "channels_last": {"memory_format": torch.channels_last},
            "double": {"dtype": torch.float64},
            "bfloat16": {"dtype": torch.bfloat16},
            "device": {"device": device},
        }
        net.to(**changes[change])
        give_gradients(net)
        optimizer.step()
        for (name, param), was, buffer in zip(net.named_parameters(), before.parameters(), kept, strict=True):
            mask = masks[name].to(device)
            was = was.detach().to(param)
            moved = was.double() - 0.1 * (0.9 * buffer.to(device, torch.float64) + param.grad.double())
            assert torch.equal(param[~mask], was[~mask])
            assert_close(param.detach(), moved.where(mask, was.double()), param.dtype)
            assert optimizer.state[param]["momentum_buffer"].stride() == param.stride()


class TestMaskedSGDErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lr": -0.1}, "lr must be a finite number, not negative, got -0.1"),
            ({"lr": math.nan}, "lr must be a finite number, not negative, got nan"),
            ({"lr": "0.1"}, "lr must be a finite number, not negative, got '0.1'"),
            ({"lr": torch.tensor([0.1, 0.2])}, "lr must be a finite number, not negative, got tensor"),
            ({"lr": torch.tensor(-1.0)}, "lr must be a finite number, not negative, got tensor"),
            ({"momentum": -0.5}, "momentum must be a finite number, not negative, got -0.5"),
            ({"dampening": math.inf}, "dampening must be a finite number, got inf"),
            ({"weight_decay": -1}, "weight_decay must be a finite number, not negative, got -1"),
            (
                {"nesterov": True},
                "nesterov must be with momentum and .*, got momentum 0.0, dampening 0.0",
            ),
            (
                {"nesterov": True, "momentum": 0.9, "dampening": 0.5},
                "nesterov .* got momentum 0.9, dampening 0.5",
            ),
            ({"state_dtype": torch.float16}, "state_dtype must be None or torch.float32, got torch.float16"),
        ],
        ids=str,
    )
    def test_options(self, options, message):
        with pytest.raises(InputError, match=message):
            MaskedSGD(draw_net().parameters(), **options)
        if "state_dtype" not in options:
            with pytest.raises(InputError, match=message):
                MaskedSGD([{"params": draw_net().parameters(), **options}])

    def test_masks(self):
        net = draw_net()
        good = draw_masks(net)
        for change, message in (
            (
                {"0.weight": None},
                r"masks must be there for every parameter that requires a gradient, got none for \['0.weight'\]",
            ),
            (
                {"7.bias": good["0.bias"]},
                r"masks must be for these parameters .*, got masks for \['7.bias'\]",
            ),
            ({"0.bias": good["1.bias"][:4]}, r"masks\['0.bias'\] must be of shape \(5,\), got \(4,\)"),
            ({"0.bias": good["0.bias"].float()}, r"masks\['0.bias'\] must be bool, got torch.float32"),
            ({"0.bias": [True] * 5}, r"masks\['0.bias'\] must be a tensor, got list"),
            ({"3.weight": good["3.weight"].to_sparse()}, r"masks\['3.weight'\] must be dense, got torch.sparse_coo"),
        ):
            masks = {name: mask for name, mask in (good | change).items() if mask is not None}
            with pytest.raises(InputError, match=message):
                MaskedSGD(net.named_parameters(), masks=masks)
        with pytest.raises(InputError, match=r"params must be \(name, parameter\) pairs, as masks go by name"):
            MaskedSGD(net.parameters(), masks=good)

    def test_a_late_group(self):
        net, late = draw_net(), ("late", nn.Parameter(torch.zeros(3)))
        optimizer = MaskedSGD(net.named_parameters(), masks=draw_masks(net))
        mask = torch.ones(3, dtype=torch.bool)
        for group, message in (
            ({}, r"masks must be there for every parameter that requires a gradient, got none for \['late'\]"),
            ({"masks": {"late": mask, "0.bias": mask}}, r"no others, got masks for \['0.bias'\]"),
            ({"masks": {"late": mask[:2]}}, r"masks\['late'\] must be of shape \(3,\), got \(2,\)"),
            ({"masks": {"late": mask}, "lr": -1.0}, "lr must be"),
        ):
            with pytest.raises(InputError, match=message):
                optimizer.add_param_group({"params": [late], **group})
            assert len(optimizer.param_groups) == 1
        optimizer.add_param_group({"params": [late], "masks": {"late": mask}})
        assert len(optimizer.param_groups) == 2

    def test_parameters_that_are_not_floating_point(self):
        with pytest.raises(InputError, match=r"params\[1\] must be floating point, got torch.complex64"):
            MaskedSGD([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, dtype=torch.complex64))])

    @pytest.mark.parametrize("named", [False, True])
    def test_sparse_gradients_are_refused_before_anything_moves(self, named):
        net = nn.Sequential(nn.Linear(3, 3), nn.Embedding(5, 3, sparse=True))
        optimizer = MaskedSGD(net.named_parameters() if named else net.parameters(), 0.1, momentum=0.9)
        before = copy.deepcopy(net)
        (net[0](torch.ones(1, 3)).sum() + net[1](torch.tensor([1])).sum()).backward()
        name = "1.weight" if named else r"params\[2\]"
        with pytest.raises(InputError, match=f"the gradient of {name} must be dense, got torch.sparse_coo"):
            optimizer.step()
        assert_equal_nets(net, before)
        assert not any(optimizer.state.values())

    def test_options_gone_wrong_are_refused_before_anything_moves(self):
        net = draw_net()
        params, before = list(net.parameters()), copy.deepcopy(net)
        optimizer = MaskedSGD([{"params": params[:3]}, {"params": params[3:]}], 0.1, momentum=0.9)
        give_gradients(net)
        optimizer.param_groups[1]["lr"] = math.nan
        with pytest.raises(InputError, match="lr must be a finite number, not negative, got nan"):
            optimizer.step()
        assert_equal_nets(net, before)

    def test_a_step_that_was_refused_leaves_no_momentum(self):
        param = nn.Parameter(torch.zeros(3))
        optimizer = MaskedSGD([param], 0.1, momentum=0.9)
        param.grad = param.data  # as nobody should
        with pytest.raises(RuntimeError, match="must not share memory"):
            optimizer.step()
        assert not optimizer.state[param]

    def test_momentum_of_another_shape(self):
        param = nn.Parameter(torch.zeros(3))
        optimizer = MaskedSGD([param], 0.1, momentum=0.9)
        param.grad = torch.ones(3)
        optimizer.step()
        state = optimizer.state_dict()
        state["state"][0]["momentum_buffer"] = torch.zeros(1)
        with pytest.raises(InputError, match=r"momentum_buffer 0 must be of shape \(3,\), got \(1,\)"):
            optimizer.load_state_dict(state)
