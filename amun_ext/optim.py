"""Optimisers that update only the parameters selected by a mask and leave the others bit-equal."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from numbers import Real
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from amun_ext.ops import in_layout_of, masked_sgd_
from amun_ext.sharded import own_part, shard_like
from amun_ext.validation import InputError, require

HALF = (torch.float16, torch.bfloat16)


class MaskedSGD(torch.optim.Optimizer):
    """torch.optim.SGD with a mask: the optimiser of SalUn (Fan et al. 2024, ICLR), and of AMUN with it (appendix D).

    Where a mask is False, parameter and momentum are bit-equal after a step: the mask stops weight decay and momentum
    along with the gradient. The published code multiplied only the gradient by the mask, so that weight decay and
    earlier momentum still changed the "frozen" weights (OPTML-Group/Unlearn-Saliency, issue 32 and pull request 33).
    `mask_gradient_only=True` reproduces that.

    With masks that are True everywhere, or None, each step is that of torch.optim.SGD up to rounding; half precision is
    computed in float32, as in its fused form.

    Args:
        params: as for every optimiser; with masks, `model.named_parameters()`, or groups of such pairs. A group may
            have its own lr, momentum, dampening, weight_decay, nesterov, maximize and masks.
        lr: not negative; a tensor of one element is read again at every step.
        momentum, dampening, weight_decay, nesterov, maximize: as in torch.optim.SGD.
        masks: from the name of every parameter to a bool tensor of its shape; None updates all. They are not in the
            state dict, but in a copy and a pickle of the optimiser.
        mask_gradient_only: the mask stops only the gradient.
        momentum_dtype: torch.float32 keeps the momentum of half-precision parameters in float32; None, in their own.

    Between two steps a model may be moved, cast or laid out in another order: masks and momentum follow.

    Raises:
        InputError: a mask that is missing, unknown or of another shape; parameters without names if there are masks, or
            that are not floating point; options out of range. At a step, before any change: options that are now out of
            range, and sparse gradients.

    Examples:
        >>> import torch
        >>> from amun_ext import MaskedSGD
        >>> model = torch.nn.Linear(2, 1)
        >>> masks = {"weight": torch.tensor([[True, False]]), "bias": torch.tensor([False])}
        >>> optimizer = MaskedSGD(model.named_parameters(), lr=0.1, weight_decay=5e-4, masks=masks)
        >>> before = model.weight.detach().clone()
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> (model.weight != before).tolist()
        [[True, False]]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        masks: Mapping[str, Tensor] | None = None,
        mask_gradient_only: bool = False,
        momentum_dtype: torch.dtype | None = None,
    ) -> None:
        require(momentum_dtype in (None, torch.float32), "momentum_dtype", "None or torch.float32", momentum_dtype)
        self.mask_gradient_only, self.momentum_dtype = mask_gradient_only, momentum_dtype
        self._masks: dict[Tensor, Tensor] = {}
        self._default_masks = masks
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**options, "nesterov": nesterov, "maximize": maximize})
        if masks is not None:
            _refuse_unknown(masks, self.param_groups)
            self._default_masks = {}  # all are assigned

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with its own options, one of which may be `masks`; those of the constructor do not apply."""
        group = dict(param_group)
        own = group.pop("masks", None)
        check_options({**self.defaults, **group})
        super().add_param_group(group)
        try:
            for name, param in _named(group):
                require(param.dtype in (torch.float32, torch.float64, *HALF), name, "floating point", param.dtype)
            if own is not None:
                _refuse_unknown(own, [group])
            masks = self._default_masks if own is None else own
            if masks is not None:
                self._masks |= _masks_of(group, masks)
        except InputError:
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the parameters that have a gradient; returns the result of `closure`, which is called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        calls = []
        for group in self.param_groups:
            check_options(group)
            batches = defaultdict(list)  # of parameters that one call of the op can take
            masked = any(param in self._masks for param in group["params"])
            for name, param in _named(group):
                if param.grad is not None:
                    known = not masked or param in self._masks  # otherwise it was frozen when the masks were given
                    require(known, "masks", "there for every parameter with a gradient", f"none for {name}")
                    require(param.grad.layout == torch.strided, f"the gradient of {name}", "dense", param.grad.layout)
                    first = group["momentum"] != 0 and self.state[param].get("momentum_buffer") is None
                    batches[param.device, first].append(param)
            calls += [(group, first, params) for (_, first), params in batches.items()]
        for call in calls:
            self._update(*call)
        return loss

    def _update(self, group: dict[str, Any], first: bool, params: list[Tensor]) -> None:
        grads = [param.grad for param in params if param.grad is not None]
        buffers = [self._momentum(param) for param in params] if group["momentum"] != 0 else []
        masks = [self._mask(param) for param in params] if params[0] in self._masks else []
        masked_sgd_(
            [*map(own_part, params)],
            [*map(own_part, grads)],
            [*map(own_part, buffers)],
            masks,
            lr=float(group["lr"]),
            momentum=group["momentum"],
            dampening=group["dampening"],
            weight_decay=float(group["weight_decay"]),
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            first=first,
            gradient_only=self.mask_gradient_only,
        )
        for param, buffer in zip(params, buffers, strict=False):  # no buffers without momentum
            self.state[param]["momentum_buffer"] = buffer  # only after the step

    def _mask(self, param: Tensor) -> Tensor:
        mask = own_part(shard_like(self._masks[param], param))
        self._masks[param] = mask = _placed(mask, own_part(param), mask.dtype)
        return mask

    def _momentum(self, param: Tensor) -> Tensor:
        """The momentum buffer, at first uninitialised."""
        buffer = self.state[param].get("momentum_buffer")
        if buffer is None:
            return torch.empty_like(param, dtype=self._momentum_dtype(param, None))
        return _placed(buffer, param, self._momentum_dtype(param, buffer.dtype))

    def _momentum_dtype(self, param: Tensor, kept: torch.dtype | None) -> torch.dtype:
        wide = param.dtype in HALF and torch.float32 in (self.momentum_dtype, kept)
        return torch.float32 if wide else param.dtype

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As for every optimiser, but momentum in float32 is restored bit by bit."""
        buffers: dict[Tensor, Tensor] = {}

        def keep(_: torch.optim.Optimizer, state: dict[str, Any]) -> None:
            saved, own = _params(state["param_groups"]), _params(self.param_groups)
            for index, param in zip(saved, own, strict=False):  # torch refuses unequal counts
                buffer = state["state"].get(index, {}).get("momentum_buffer")
                if buffer is not None:
                    expected = f"of shape {tuple(param.shape)}"
                    require(buffer.shape == param.shape, f"momentum_buffer {index}", expected, tuple(buffer.shape))
                    buffers[param] = buffer.to(param.device, self._momentum_dtype(param, buffer.dtype), copy=True)

        hook = self.register_load_state_dict_pre_hook(keep)  # after all others, which may change the state
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        for param, buffer in buffers.items():
            self.state[param]["momentum_buffer"] = buffer

    def __getstate__(self) -> dict[str, Any]:
        own = ("mask_gradient_only", "momentum_dtype", "_masks", "_default_masks")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}


def masked(
    optimizer: torch.optim.Optimizer, masks: Mapping[str, Tensor], *, mask_gradient_only: bool = False
) -> torch.optim.Optimizer:
    """Any optimiser of named parameters, with masks as those of MaskedSGD, by hooks before and after each step.

    Masked gradients, and so their moments, are zero; parameters that weight decay changed are restored after the step.
    InputError for masks as in MaskedSGD.
    """
    _refuse_unknown(masks, optimizer.param_groups)
    chosen: dict[Tensor, Tensor] = {}
    for group in optimizer.param_groups:
        chosen |= {param: own_part(shard_like(mask, param)) for param, mask in _masks_of(group, masks).items()}
    before: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def stop(*_: object) -> None:
        for param, mask in chosen.items():
            if param.grad is not None:
                chosen[param] = mask = mask.to(param.device)
                own_part(param.grad).masked_fill_(~mask, 0)
                if not mask_gradient_only:
                    before[param] = own_part(param).clone()

    @torch.no_grad()
    def put_back(*_: object) -> None:
        for param, value in before.items():
            own = own_part(param)
            own.copy_(torch.where(chosen[param], own, value))
        before.clear()

    optimizer.register_step_pre_hook(stop)
    optimizer.register_step_post_hook(put_back)
    return optimizer


def check_options(group: Mapping[str, Any]) -> None:
    """InputError for options out of range."""
    for name, least in (("lr", 0.0), ("momentum", 0.0), ("dampening", -math.inf), ("weight_decay", 0.0)):
        value = group[name]
        number = isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)
        expected = "a finite number" if least else "a finite number, not negative"
        require(number and math.isfinite(value) and value >= least, name, expected, repr(value))
    momentum, dampening = group["momentum"], group["dampening"]
    fits = not group["nesterov"] or (momentum > 0 and dampening == 0)
    require(fits, "nesterov", "with momentum and without dampening", f"momentum {momentum}, dampening {dampening}")


def _params(groups: list[dict[str, Any]]) -> Iterator[Any]:
    return chain.from_iterable(group["params"] for group in groups)


def _named(group: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    params = group["params"]
    names = group.get("param_names") or [f"params[{index}]" for index in range(len(params))]
    return zip(names, params, strict=True)


def _placed(tensor: Tensor, param: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` on the device and in the layout that the parameter has now."""
    if tensor.dtype != dtype or tensor.device != param.device:
        tensor = tensor.to(param.device, dtype)
    return in_layout_of(param, tensor)


def _refuse_unknown(masks: Mapping[str, Tensor], groups: list[dict[str, Any]]) -> None:
    unknown = set(masks) - {name for group in groups for name, _ in _named(group)}
    require(not unknown, "masks", "for these parameters and no others", f"masks for {sorted(unknown)}")


def _masks_of(group: Mapping[str, Any], masks: Mapping[str, Tensor]) -> dict[Tensor, Tensor]:
    """The group's masks by parameter, checked."""
    require("param_names" in group, "params", "(name, parameter) pairs, as masks go by name", "parameters alone")
    named = [(name, param) for name, param in _named(group) if name in masks or param.requires_grad]
    missing = [name for name, _ in named if name not in masks]
    require(not missing, "masks", "there for every parameter that requires a gradient", f"none for {missing}")
    for name, param in named:
        mask, argument = masks[name], f"masks[{name!r}]"
        require(isinstance(mask, Tensor), argument, "a tensor", type(mask).__name__)
        require(mask.layout == torch.strided, argument, "dense", mask.layout)
        require(mask.dtype == torch.bool, argument, "bool", mask.dtype)
        require(mask.shape == param.shape, argument, f"of shape {tuple(param.shape)}", tuple(mask.shape))
    return {param: masks[name] for name, param in named}
