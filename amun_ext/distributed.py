"""The ranks of a torch.distributed process group share a piece of work; without a group there is one rank.

Every rank calls the same function with the same arguments. If one fails, all of them end with its reason.
"""

import contextlib
import functools
import itertools
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from functools import reduce
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from amun_ext.validation import require

if dist.is_available():
    # torch imports this module with its compiler, on the first optimizer. Imported while a group exists, its default
    # arguments keep the group and its threads beyond destroy_process_group, and Python can abort at its end.
    import torch.distributed.nn.functional

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Item = TypeVar("Item")

_alone = ContextVar("_alone", default=False)
_lists = itertools.count()  # of claimed items; every rank has the same number
NONE_LEFT = 2**40  # more than any list has
CONNECTION = re.compile("gloo/transport|connect|timed? ?out|NCCL", re.IGNORECASE)  # in messages of a lost rank


class RankError(RuntimeError):
    """Another rank failed or ended; `reason` is its exception, None if it has ended without one."""

    def __init__(self, message: str, reason: BaseException | None = None) -> None:
        super().__init__(message)
        self.reason = reason


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized() and not _alone.get()


def rank() -> int:
    return dist.get_rank() if _in_group() else 0


def world_size() -> int:
    return dist.get_world_size() if _in_group() else 1


def store() -> Any:
    """That of the process group, which torch has no public name for."""
    return dist.distributed_c10d._get_default_store()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """In here this rank works by itself, as one process without a group does."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def by_first_rank(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function, which the first rank runs alone when all have called it; all have its result, or its failure."""

    @functools.wraps(function)
    def run(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        result: Result | None = None
        exchange()  # the others may still read what it changes
        with fail_together():
            if rank() == 0:
                with alone():
                    result = function(*arguments, **options)
        return cast(Result, exchange(result)[0])

    return run


@contextlib.contextmanager
def entered_by_first_rank(context: contextlib.AbstractContextManager[Result]) -> Iterator[Result]:
    """The context, which the first rank enters, and leaves when all are done."""
    with contextlib.ExitStack() as stack:
        yield by_first_rank(stack.enter_context)(context)
        exchange()


def claimed(items: Iterable[Item]) -> Iterator[Item]:
    """The items that this rank is the first to take, one whenever it asks; every rank has the same ones in this order.

    Closed early, as by an exception, it leaves none to the others.
    """
    if world_size() == 1:
        yield from items
        return
    counter, mine = f"amun_ext/{next(_lists)}", -1

    def claim(count: int = 1) -> int:
        with _lost_ranks():
            return int(store().add(counter, count)) - 1

    for number, item in enumerate(items):
        mine = claim() if number > mine else mine
        if number == mine:
            try:
                yield item
            except GeneratorExit:
                claim(NONE_LEFT)
                raise


def blocks(count: int) -> list[range]:
    """The rows of each rank: consecutive, and as many as of every other rank or one more."""
    ends = [count * number // world_size() for number in range(world_size() + 1)]
    return [range(*block) for block in itertools.pairwise(ends)]


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """An exception in here is raised at the next `exchange` of the other ranks, as a RankError."""
    try:
        yield
    except RankError:
        raise
    except Exception as error:
        with contextlib.suppress(RankError):
            exchange(error=error)
        raise


def exchange(value: Any = None, error: Exception | None = None) -> list[Any]:
    """The values of all ranks, in their order. RankError if one has failed."""
    if world_size() == 1:
        return [value]
    outcomes: list[Any] = [None] * world_size()
    with _lost_ranks():
        dist.all_gather_object(outcomes, (error and picklable(error), value))
    failed = {number: reason for number, (reason, _) in enumerate(outcomes) if reason is not None}
    if failed:
        told = [f"rank {number} failed: {type(reason).__name__}: {reason}" for number, reason in failed.items()]
        raise RankError("; ".join(told), next(iter(failed.values())))
    return [each for _, each in outcomes]


def picklable(error: BaseException) -> BaseException:
    """The error, or one with its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of user code, it may be anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def check_same(**facts: object) -> None:
    """InputError on every rank if one of the `facts` is not the same on all ranks."""
    first, *others = exchange(facts)
    for number, other in enumerate(others, 1):
        for name in first:
            got = f"{first[name]} on rank 0, {other[name]} on rank {number}"
            require(first[name] == other[name], name, "the same on every rank", got)


def gather_rows(own: Tensor, count: int) -> Tensor:
    """The [count, ...] rows of which each rank has the `own` ones of its block, on every rank."""
    if world_size() == 1:
        return own
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    rows = torch.empty(count, *own.shape[1:], dtype=own.dtype, device=device)
    for source, block in enumerate(blocks(count)):
        part = rows[block.start : block.stop]
        if source == rank():
            part.copy_(own)
        if block:
            with _lost_ranks():
                dist.broadcast(part.view(torch.uint8), source)  # bytes: not every backend knows every dtype
    return rows.to(own.device)


def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all ranks; in float32 at least."""
    if world_size() == 1:
        return
    wide = reduce(torch.promote_types, (each.dtype for each in tensors), torch.float32)
    flat = torch.cat([each.detach().flatten().to(wide) for each in tensors])
    with _lost_ranks():
        dist.all_reduce(flat)
    for each, total in zip(tensors, flat.split([each.numel() for each in tensors]), strict=True):
        each.detach().copy_(total.view(each.shape))


def average_gradients(weights: Sequence[Tensor]) -> None:
    """Replace each gradient by its mean over all ranks; one that no rank has stays None."""
    if world_size() == 1:
        return
    had = torch.tensor([float(weight.grad is not None) for weight in weights], device=weights[0].device)
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    sum_over_ranks([*gradients, had])
    for weight, gradient, ranks in zip(weights, gradients, had.tolist(), strict=True):
        weight.grad = gradient / world_size() if ranks else None


@contextlib.contextmanager
def _lost_ranks() -> Iterator[None]:
    try:
        yield
    except RuntimeError as lost:
        if not (isinstance(lost, dist.DistError) or CONNECTION.search(str(lost))):
            raise  # such as of a backend that does not know the tensor's device
        raise RankError(f"another rank has ended or does not answer: {lost}") from lost
