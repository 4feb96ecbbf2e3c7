"""The masked step of SGD: against its twin and closed forms."""

import math
from dataclasses import dataclass

import pytest
import torch
from op_tools import DTYPES, TOLERANCE, assert_close
from pairs import pairs
from torch import Tensor

from amun_ext import ops, reference

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

    def step(self, lr=0.1, op=None, **rule) -> None:
        op = ops.masked_sgd_ if op is None else op
        op(self.params, self.grads, self.momentum_buffers if rule.get("momentum") else [], self.masks, lr, **rule)

    def written(self) -> list[Tensor]:
        return [*self.params, *self.momentum_buffers]


def assert_same_bits(results: list[Tensor], expected: list[Tensor]) -> None:
    for result, result_expected in zip(results, expected, strict=True):
        assert torch.equal(bits(result), bits(result_expected))


def check_masked_sgd(lists: Lists, **rule) -> None:
    """The op does what its twin does in the same dtype and in float64, and on a GPU what it does on the CPU; where the
    mask is False, it does nothing."""
    before = lists.copy()
    lists.step(**rule)
    twin = reference.masked_sgd_
    expectations = [(twin, before.copy()), (twin, before.copy(double=True))]
    if lists.params[0].is_cuda:
        expectations.append((ops.masked_sgd_, before.copy(device="cpu")))
    for op, expected in expectations:
        expected.step(op=op, **rule)
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
    def test_matches_the_reference(self, backend, dtype, keep, density, rule):
        check_masked_sgd(Lists.draw(SHAPES, dtype, backend, keep, density), **rule)

    @pytest.mark.parametrize(("dtype", "keep", "rule"), pairs(KEEPS, RULES))
    def test_without_masks_everything_is_updated(self, backend, dtype, keep, rule):
        lists = Lists.draw(SHAPES, dtype, backend, keep, density=1.0)
        open_ = lists.copy()
        open_.masks = []
        check_masked_sgd(open_, **rule)
        lists.step(**rule)
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
        lists.step(**rule)
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
    def test_frozen_elements_may_have_gradients_that_are_not_finite(self, device, dtype, keep, value, rule):
        lists = Lists.draw([(100, 41)], dtype, device, keep)
        clean, frozen = lists.copy(), ~lists.masks[0]
        lists.grads[0][frozen] = value
        lists.step(**rule)
        clean.step(**rule)
        assert_same_bits(lists.written(), clean.written())

    @pytest.mark.parametrize(("dtype", "keep"), KEEPS)
    def test_a_frozen_nan_keeps_its_bits(self, device, dtype, keep):
        lists = Lists.draw([(500,)], dtype, device, keep)
        for tensor in lists.written():
            patterns = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]
            tensor.copy_(torch.full(tensor.shape, -3, dtype=patterns).view(tensor.dtype))
            assert tensor.isnan().all()
        before = lists.copy()
        lists.step(momentum=0.9, weight_decay=0.1)
        frozen = ~lists.masks[0]
        assert_same_bits([each[frozen] for each in lists.written()], [each[frozen] for each in before.written()])

    @pytest.mark.parametrize(("dtype", "keep"), KEEPS)
    def test_the_first_step_ignores_the_momentum(self, device, dtype, keep):
        lists = Lists.draw([(300, 5)], dtype, device, keep)
        twin = lists.copy()
        lists.momentum_buffers[0].fill_(torch.nan)
        for each in (lists, twin):
            each.step(momentum=0.9, nesterov=True, first=True)
        assert_same_bits(lists.written(), twin.written())
        assert (lists.momentum_buffers[0][~lists.masks[0]] == 0).all()

    def test_many_tensors_of_all_dtypes_in_one_call(self, device):
        shapes = [(size % 11, size % 5 + 1) for size in range(100)]
        parts = [Lists.draw(shapes, *keep.values[:1], device, *keep.values[1:]) for keep in KEEPS]
        lists = Lists(*([tensor for part in parts for tensor in vars(part)[name]] for name in vars(parts[0])))
        check_masked_sgd(lists, momentum=0.9, weight_decay=0.1)

    @pytest.mark.parametrize("offset", [1, 2, 3, 5])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_data_that_is_not_aligned(self, device, dtype, offset):
        wide = Lists.draw([(BLOCK + 99,)] * 3, dtype, device)
        lists = Lists(*([tensor[offset + i :] for i, tensor in enumerate(tensors)] for tensors in vars(wide).values()))
        for i, mask in enumerate(wide.masks):  # not as far off as the others
            lists.masks[i] = mask[: lists.params[i].numel()]
        outside = [tensor[:offset].clone() for tensor in wide.written()]
        check_masked_sgd(lists, momentum=0.9, weight_decay=0.1)
        assert_same_bits([tensor[:offset] for tensor in wide.written()], outside)

    def test_empty_inputs(self, device):
        ops.masked_sgd_([], [], [], [], 0.1)
        check_masked_sgd(Lists.draw([(0,), (3, 0)], device=device), momentum=0.9)

    def test_compiles_without_a_graph_break(self, device):
        def stepped(params, grads, buffers, masks):
            ops.masked_sgd_(params, [2 * grad for grad in grads], buffers, masks, 0.1, 0.9, nesterov=True)
            return [param + 1 for param in params]

        lists = Lists.draw([(3, 4), (5,)], device=device)
        again = lists.copy()
        compiled = torch.compile(stepped, backend="aot_eager", fullgraph=True)
        assert_same_bits(compiled(*vars(lists).values()), stepped(*vars(again).values()))
        assert_same_bits(lists.written(), again.written())

    def test_is_not_differentiable_and_its_schema_names_what_it_writes(self, device):
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
            each.step(momentum=0.9, weight_decay=0.1)
        assert_same_bits(lists.written(), plain.written())
        assert [tensor.stride() for tensor in lists.written()] == strides

    def test_memory_between_the_elements_of_a_parameter_is_unchanged(self, device):
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
        assert ops.in_layout_of(param, grad) is grad


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
