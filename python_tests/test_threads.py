"""An op gives the same bits with one thread and with several, among which it shares its rows out."""

import pytest
import torch
from op_tools import CONFIGS, DTYPES, Search, draw_feedback, draw_logits
from pairs import pairs
from test_masked_sgd import RULES, Lists, assert_same_bits
from torch import Tensor

from amun_ext import ops


@pytest.fixture
def with_threads():
    """Call a function with so many threads."""

    def called(threads: int, function, *arguments):
        torch.set_num_threads(threads)
        return function(*arguments)

    yield called
    torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attack_loss_and_sm_taylor_softmax(with_threads, dtype) -> None:
    logits, labels = draw_logits(20_001, 10, dtype=dtype)

    def answers() -> list[Tensor]:
        losses = [column for loss in ops.LOSSES for column in ops.attack_loss(logits, labels, loss)]
        return [*losses, ops.sm_taylor_softmax(logits, labels)]

    assert_same_bits(with_threads(3, answers), with_threads(1, answers))


@pytest.mark.parametrize(("dtype", "rule"), pairs(DTYPES, ops.RULES))
def test_search_step(with_threads, dtype, rule: str) -> None:
    one = Search.running(301, (3, 16, 16), dtype=dtype)
    several, feedback = one.copy(), draw_feedback(one.batch.x, torch.arange(301) % 3 == 1)
    for search, threads in ((one, 1), (several, 3)):
        with_threads(threads, search.step, feedback, CONFIGS[rule])
    assert_same_bits([*several.batch, *several.table], [*one.batch, *one.table])


@pytest.mark.parametrize("rule", RULES)
def test_masked_sgd(with_threads, rule) -> None:
    one = Lists.draw([(50_001,), (), (7, 3), (0, 4), (40 * 4096,)])
    several = one.copy()
    for lists, threads in ((one, 1), (several, 3)):
        with_threads(threads, lambda lists=lists: lists.step(**rule))
    assert_same_bits(several.written(), one.written())
