"""The ops of the extension, each with a thin wrapper and a fake kernel. The only file with `torch.ops`."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from amun_ext import extension

extension.load()
_attack_loss = torch.ops.amun_ext.attack_loss.default
_search_step_ = torch.ops.amun_ext.search_step_.default
_masked_sgd_ = torch.ops.amun_ext.masked_sgd_.default
_sm_taylor_softmax = torch.ops.amun_ext.sm_taylor_softmax.default

# no op has a gradient; autograd would slow the calls and mark results as differentiable
_autograd = torch.library.Library("amun_ext", "IMPL")
for _name in ("attack_loss", "search_step_", "sm_taylor_softmax"):
    _autograd.impl(_name, torch.library.fallthrough_kernel, "Autograd")

LOSSES = ("cross_entropy", "margin")
RULES = ("pgd", "ddn", "deepfool", "external")
TAYLOR_ORDERS = range(2, 9)


class AttackLoss(NamedTuple):
    adversarial: Tensor  # [B] bool
    predicted: Tensor  # [B] int64, -1 where a logit is NaN
    margin: Tensor  # [B] float32 (float64), the label's logit minus the strongest other, plus `min_margin`
    grad_logits: Tensor  # [B, K], dtype of the logits


@torch.no_grad()
def attack_loss(
    logits: Tensor,  # [B, K]
    labels: Tensor,  # [B] int64
    loss: str = "cross_entropy",
    min_margin: float = 0.0,
) -> AttackLoss:
    """Success test and start of the backward pass of an untargeted attack, one pass per row.

    A row is adversarial when another class is predicted, by at least `min_margin` logits. In all others the margin is
    at least a rounding of the logits, also at a tie that the label wins.

    `grad_logits` has the direction of the gradient of the loss that the attack ascends; its length is free, since the
    step normalises per sample. It stays exact where the softmax saturates. Rows with a NaN are not adversarial and are
    predicted as -1; their gradient is zero. Not differentiable.

    Equivalent to (up to the positive factor 1 / (1 - p_label) in `grad_logits`):

        others = logits.scatter(1, labels[:, None], -inf)
        own, rival = logits.gather(1, labels[:, None])[:, 0], others.amax(1)
        margin = own - rival + min_margin
        predicted = logits.argmax(1); adversarial = (predicted != labels) & (margin <= 0)
        margin = where(adversarial, margin, margin.clamp(min=eps * maximum(own.abs(), rival.abs())))
        grad_logits = grad(F.cross_entropy(logits, labels, reduction="sum"), logits)    # loss="cross_entropy"
        grad_logits = one_hot(others.argmax(1)) - one_hot(labels)                       # loss="margin"

    Raises:
        RuntimeError: logits not [B, K >= 2] floating point, labels not [B] int64, an unknown loss, or a min_margin
            that is negative or not finite.

    Examples:
        >>> import torch
        >>> from amun_ext import ops
        >>> result = ops.attack_loss(torch.tensor([[2.0, 0.5], [0.0, 3.0]]), torch.tensor([0, 0]))
        >>> result.adversarial.tolist(), result.margin.tolist()
        ([False, True], [1.5, -3.0])
    """
    return AttackLoss(*_attack_loss(logits, labels, loss, min_margin))


@torch.library.register_fake("amun_ext::attack_loss")
def _(logits: Tensor, labels: Tensor, loss: str, min_margin: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_device(logits, labels)
    torch._check(logits.dim() == 2, lambda: f"logits must have shape [B, K], got {tuple(logits.shape)}")
    torch._check(labels.shape == logits.shape[:1], lambda: f"labels must have shape [B], got {tuple(labels.shape)}")
    torch._check(loss in LOSSES, lambda: f"loss must be one of {LOSSES}, got {loss!r}")
    rows = logits.shape[0]
    return (
        logits.new_empty(rows, dtype=torch.bool),
        logits.new_empty(rows, dtype=torch.int64),
        logits.new_empty(rows, dtype=accumulate_dtype(logits.dtype)),
        torch.empty_like(logits, memory_format=torch.contiguous_format),
    )


class SlotBatch(NamedTuple):
    """The batch of the model: slot b works on sample `sample_index[b]`, or is idle (-1)."""

    x: Tensor  # [B, ...] iterates
    sample_index: Tensor  # [B] int64
    slot_labels: Tensor  # [B] int64


class Feedback(NamedTuple):
    """The results of the model for `SlotBatch.x`."""

    grad: Tensor  # [B, ...] of the attacked loss; with rule "external" the next iterate
    adversarial: Tensor  # [B] bool
    predicted: Tensor  # [B] int64
    margin: Tensor  # [B] float32 (float64), in logits, to the boundary


class SampleTable(NamedTuple):
    """A row per sample: the original, the state of its search, and the closest example."""

    inputs: Tensor  # [N, ...] the originals
    labels: Tensor  # [N] int64, true labels
    images: Tensor  # [N, ...] at first the start of the search, then the closest example so far, if any
    found_labels: Tensor  # [N] int64, the model's label of the example
    eps: Tensor  # [N] radius, float32 (float64 for float64 inputs); 0: to be estimated from the first gradient
    distance: Tensor  # [N] L2 norm of the closest example's perturbation, infinite without one; like eps
    step_count: Tensor  # [N] int32, steps so far, for "pgd" at this radius
    grad_evals: Tensor  # [N] int32
    status: Tensor  # [N] int8, a Status


class StepConfig(NamedTuple):
    """The parameters of a step (see search_step_)."""

    rule: str  # one of RULES
    steps: int  # pgd: at one radius; others: in all
    eps_max: float
    step_fraction: float = 1.0  # pgd, ddn: step size / radius
    last_step_fraction: float = 1.0  # ddn: at the last step
    eps_growth: float = 1.1  # pgd, ddn: factor between two radii
    last_eps_growth: float = 1.1  # ddn: at the last step
    start: float = 1.0  # an estimated first radius / the linear distance to the boundary, margin / |grad|
    overshoot: float = 1.0  # ddn, deepfool: factor of a step to the linearised boundary
    pull_back: float = 1.0  # deepfool: part of d that is kept before a step from an adversarial iterate


class Status:
    PENDING, FOUND, EXHAUSTED, NO_GRADIENT = range(4)


def search_step_(
    batch: SlotBatch,
    feedback: Feedback,
    samples: SampleTable,
    queue: Tensor,  # [Q] int64, rows of `samples` to search, in this order
    queue_position: Tensor,  # [1] int64, how many of them have been taken
    config: StepConfig,
    bounds: tuple[float, float],
) -> None:
    """One step of every slot, in place: store found examples, refill slots from the queue, move the others.

    An adversarial slot that is closer than its sample's example so far writes its image, label and distance into the
    sample's row. A slot ends if it is adversarial with rule "pgd" or at distance 0, if its steps or radii are used up,
    if its gradient is zero or not finite, or if its margin is NaN (with "external": if its grad is not finite). Ended
    and idle slots take the next sample of the queue, starting from `samples.images`. The others step, with d = x - x0
    and m = margin:

        pgd (paper, Algorithm 1): eps grows by eps_growth after `steps` steps, up to eps_max
            d = d + step_fraction * eps * grad / |grad|;  x = clamp(x0 + d * min(1, eps / |d|), *bounds)
        ddn (Rony et al. 2019): step_fraction and c = eps_growth - 1 go to their last values by a constant factor
            d' = d + step_fraction * eps * grad / |grad|;  u = d' / |d'|
            eps = eps * (1 + c)  or, adversarial, with e = min(eps, distance):
                  clamp(overshoot * (m + <grad, d>) / <grad, u>, e * (1 - 2 c), e * (1 - c));  not at the first step
            x = clamp(x0 + eps * u, *bounds)
        deepfool (Moosavi-Dezfooli et al. 2016): k = pull_back where adversarial, else 1
            x = clamp(x0 + k * d + overshoot * (m + (1 - k) * <grad, d>) / |grad|^2 * grad, *bounds)
        external: x = clamp(grad, *bounds): the caller has computed the next iterate

    For ddn and deepfool the elements of grad that point out of the box at its bounds are zero. An eps of 0 becomes
    start * m / |grad| first, at most eps_max and at least `shortest_step(x)`, which is also the least length of a
    deepfool step from a point that is not adversarial.

    Norms are L2 norms per sample, with sums in float32 (float64 for float64), in which a gradient norm below 1e-22 or
    above 1e19 counts as no gradient. Not differentiable.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype, device or layout, shared memory, a queue entry that is no row
            of `samples` (on a GPU it is skipped), an unknown rule, or a number of `config` out of range ("ddn" wants
            both growths below 1.5).
    """
    if batch.x.requires_grad:
        raise RuntimeError("x must not require grad: it changes in place")
    rule, steps, *params = config
    inputs, labels, *state = samples
    # As lists, which the dispatcher reads faster than tuples: a microsecond of nine.
    lists = (list(batch), list(feedback), [inputs, labels], state)
    _search_step_(*lists, queue, queue_position, rule, steps, params, bounds)


@torch.library.register_fake("amun_ext::search_step_")
def _(
    batch: list[Tensor],
    feedback: list[Tensor],
    samples: list[Tensor],
    state: list[Tensor],
    queue: Tensor,
    queue_position: Tensor,
    *_: object,
) -> None:
    _check_device(*batch, *feedback, *samples, *state, queue, queue_position)


ROUNDINGS = 16  # as in csrc/amun_math.h


def shortest_step(x: Tensor) -> Tensor:
    """The shortest step [B] that surely changes `x` [B, ...]: some roundings of its elements."""
    shortest: Tensor = ROUNDINGS * torch.finfo(x.dtype).eps * x.flatten(1).norm(dim=1)
    return shortest


@torch.no_grad()
def masked_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],  # of the parameters' shapes and dtypes
    momentum_buffers: Sequence[Tensor],  # the same, or float32 beside a half type; none where momentum is 0
    masks: Sequence[Tensor],  # bool, of the parameters' shapes; none: everything is updated
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first: bool = False,
    gradient_only: bool = False,
) -> None:
    """One step of SGD over a list of parameters, in place; where a mask is False, parameter and momentum are unchanged.

    That holds for any gradient there. `first` takes the momentum as zero, whatever the buffers contain. With
    `gradient_only`, the older rule, a mask stops only the gradient, not weight decay and momentum. Half types are
    computed in float32. All tensors are on one device; dtypes and layouts may differ between parameters. Tensors with
    another memory layout than their parameter are copied, and so are parameters with gaps.

    Equivalent to, for every parameter:

        g = where(mask, grad, 0) if gradient_only else grad
        g = (-g if maximize else g) + weight_decay * param
        b = g if first else momentum * buffer + (1 - dampening) * g                     # where momentum is not 0
        step = g if momentum == 0 else g + momentum * b if nesterov else b
        moves = mask | gradient_only
        buffer = where(moves, b, 0 if first else buffer);  param = where(moves, param - lr * step, param)

    Raises:
        RuntimeError: lists of unequal length, a tensor of the wrong shape, dtype or device, shared memory, or a number
            out of range (not finite; but for dampening, negative; nesterov without momentum or with dampening).

    Examples:
        >>> import torch
        >>> from amun_ext import ops
        >>> param, grad, mask = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.5]), torch.tensor([True, False])
        >>> ops.masked_sgd_([param], [grad], [], [mask], lr=0.1)
        >>> param
        tensor([0.9500, 1.0000])
    """
    if not params:
        return
    laid_out = [param if _is_dense(param) else param.clone(memory_format=torch.contiguous_format) for param in params]

    def in_layout(tensors: Sequence[Tensor]) -> list[Tensor]:
        if len(tensors) != len(params):
            return list(tensors)  # the op raises
        return [in_layout_of(param, tensor) for tensor, param in zip(tensors, laid_out, strict=True)]

    buffers = in_layout(momentum_buffers)
    rule = (lr, momentum, dampening, weight_decay, nesterov, maximize, first, gradient_only)
    _masked_sgd_(laid_out, in_layout(grads), buffers, in_layout(masks), *rule)
    written = [*params, *momentum_buffers]
    for tensor, result in zip(written, [*laid_out, *buffers], strict=True):
        if result is not tensor:
            tensor.copy_(result)
    if not torch.compiler.is_compiling():  # the compiler takes it from the op's schema
        torch.autograd.graph.increment_version(written)


@torch.library.register_fake("amun_ext::masked_sgd_")
def _(
    params: list[Tensor], grads: list[Tensor], momentum_buffers: list[Tensor], masks: list[Tensor], *_: float | bool
) -> None:
    _check_device(*params, *grads, *momentum_buffers, *masks)


@torch.no_grad()
def sm_taylor_softmax(
    logits: Tensor,  # [..., N, C]
    labels: Tensor,  # [N] int64, the same for all that leads
    order: int = 4,
    margin: float = 0.6,
    temperature: float = 2.0,
    floor: float | None = None,
) -> Tensor:
    """Soft-margin Taylor softmax of the true class, [..., N], float32 (float64 for float64): the signal of RMIA.

    From Zarifzadeh et al. 2024, with the order, margin and temperature of the AMUN paper (appendix C). `order` is the
    number of terms of the series, as in the published code: 4 is the cubic.

    The cubic is negative below -1.596, as every even order is somewhere. So p may be below 0 or above 1, and is large
    where own and other terms cancel. An odd order is positive, but also large for very negative logits. With `floor`,
    the smallest value of a term, p is in (0, 1]. The function is not invariant to shifts: do not subtract the largest
    logit, as for a softmax, or most results are negative or above 1.

    The result is NaN for a row with a NaN or with a label outside [0, C), and may be NaN for infinite logits or after
    an overflow. Has no gradient.

    Equivalent to, up to rounding:

        t = lambda z: sum(z**k / factorial(k) for k in range(order)).clamp(min=floor)
        own = logits[..., arange(N), labels]
        others = t(logits / temperature).scatter(-1, labels, 0).sum(-1)
        p = t(own / temperature - margin) / (t(own / temperature - margin) + others)

    Raises:
        RuntimeError: logits that require grad or are not [..., N, C >= 2] floating point, labels not [N] int64, an
            order out of [2, 8], a margin that is not finite, or a temperature or floor that is not positive and finite.

    Examples:
        >>> import torch
        >>> from amun_ext import sm_taylor_softmax
        >>> sm_taylor_softmax(torch.tensor([[4.0, 0.0]]), torch.tensor([0]))  # t(1.4) / (t(1.4) + t(0))
        tensor([0.7933])
    """
    if logits.requires_grad:
        raise RuntimeError("logits must not require grad: the signal has no gradient; detach them")
    least = -math.inf if floor is None else floor
    signal: Tensor = _sm_taylor_softmax(logits, labels, order, margin, temperature, least)
    return signal


@torch.library.register_fake("amun_ext::sm_taylor_softmax")
def _(logits: Tensor, labels: Tensor, order: int, margin: float, temperature: float, floor: float) -> Tensor:
    _check_device(logits, labels)
    torch._check(logits.dim() >= 2, lambda: f"logits must have shape [..., N, C], got {tuple(logits.shape)}")
    torch._check(labels.shape == logits.shape[-2:-1], lambda: f"labels must have shape [N], got {tuple(labels.shape)}")
    torch._check(order in TAYLOR_ORDERS, lambda: f"order must be in [2, 8], got {order}")
    return logits.new_empty(logits.shape[:-1], dtype=accumulate_dtype(logits.dtype))


def _check_device(first: Tensor, *others: Tensor) -> None:
    """A meta tensor among others dispatches to a fake kernel, which would compute nothing."""
    devices = {str(each.device) for each in others} - {str(first.device)}
    message = f"all tensors must be on the device of the first, {first.device}, got {', '.join(sorted(devices))}"
    torch._check(not devices, lambda: message)


def _is_dense(tensor: Tensor) -> bool:
    """Without gaps or overlap: only then an empty tensor like it has the same strides."""
    return tensor.is_contiguous() or torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def in_layout_of(param: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` in the memory layout of the dense `param`, copied if needed; unchanged if it has another shape."""
    strides, wanted = tensor.stride(), param.stride()
    if strides == wanted or tensor.shape != param.shape:
        return tensor
    if all(size == 1 or own == like for size, own, like in zip(param.shape, strides, wanted, strict=True)):
        return tensor
    return torch.empty_like(param, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over `dtype` run, and that of eps, distance and margin."""
    return torch.float64 if dtype == torch.float64 else torch.float32
