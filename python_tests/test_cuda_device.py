"""What only a CUDA device can show: streams, graphs, memory beyond 2^31 elements. Collected where there is one.

That the ops are right there is shown by the tests that take a `device`.
"""

from collections.abc import Callable
from itertools import chain, islice
from typing import Any
from unittest import mock

import pytest
import torch
from op_tools import CONFIGS, DDN, DTYPES, Search, assert_close, check_search_step, draw_feedback, draw_logits
from pairs import pairs
from torch import Tensor

from amun_ext import find_min_adversarial, ops
from amun_ext.search import loop

DEVICE = "cuda"


def draw_works() -> dict[str, tuple[list[Tensor], Callable[[list[Tensor]], Any]]]:
    """Of every op its tensors, and a function of them that returns what it wrote."""
    logits, labels = draw_logits(300, 100, device=DEVICE)
    search = Search.running(4, (3, 32, 32), device=DEVICE)
    lists = search.batch, draw_feedback(search.batch.x), search.table

    def step(tensors: list[Tensor]) -> list[Tensor]:
        rest = iter(tensors)
        ops.search_step_(*(type(each)(*islice(rest, len(each))) for each in lists), *rest, DDN, (0.0, 1.0))
        return tensors

    def update(tensors: list[Tensor]) -> list[Tensor]:
        param, grad, momentum, mask = tensors
        ops.masked_sgd_([param], [grad], [momentum], [mask > 0.5], lr=0.1, momentum=0.9)
        return [param, momentum]

    return {
        "attack_loss": ([logits, labels], lambda tensors: list(ops.attack_loss(*tensors, "cross_entropy"))),
        "sm_taylor_softmax": ([logits, labels], lambda tensors: [ops.sm_taylor_softmax(*tensors)]),
        "search_step_": ([*chain(*lists), search.queue, search.queue_position], step),
        "masked_sgd_": ([torch.rand(10_001, device=DEVICE) for _ in range(4)], update),
    }


@pytest.mark.parametrize("op", ["attack_loss", "sm_taylor_softmax", "search_step_", "masked_sgd_"])
class TestQueues:
    def test_runs_on_the_current_stream(self, op):
        """After what stands in it, which takes its time."""
        tensors, work = draw_works()[op]
        expected = work([tensor.clone() for tensor in tensors])
        late = [torch.zeros_like(tensor) for tensor in tensors]
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(200_000_000)
            for empty, tensor in zip(late, tensors, strict=True):
                empty.copy_(tensor)
            result = work(late)
        torch.cuda.synchronize()
        assert all(map(torch.equal, result, expected))

    def test_a_graph_does_what_the_op_does(self, op):
        tensors, work = draw_works()[op]
        expected = work([tensor.clone() for tensor in tensors])
        work(there := [tensor.clone() for tensor in tensors])
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            result = work(there)
        for mine, tensor in zip(there, tensors, strict=True):
            mine.copy_(tensor)
        graph.replay()
        assert all(map(torch.equal, result, expected))

    def test_the_current_device_stays(self, op):
        before = torch.cuda.current_device()
        tensors, work = draw_works()[op]
        work(tensors)
        assert torch.cuda.current_device() == before


if torch.cuda.device_count() > 1:

    @pytest.mark.parametrize("op", ["attack_loss", "sm_taylor_softmax", "search_step_", "masked_sgd_"])
    def test_runs_where_its_tensors_are(op):
        """And not on the device that is the current one."""
        tensors, work = draw_works()[op]
        expected = work([tensor.clone() for tensor in tensors])
        there = work([tensor.to("cuda:1") for tensor in tensors])
        assert torch.cuda.current_device() == 0
        for result, wanted in zip(there, expected, strict=True):
            assert torch.equal(result.to(wanted.device), wanted)


class TestRows:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("classes", [10, 33, 200, 1000, 3000])
    def test_results_of_a_row_do_not_depend_on_the_others(self, dtype, classes):
        logits, labels = draw_logits(1000, classes, device=DEVICE, dtype=dtype)
        rows = torch.randperm(1000, device=DEVICE)[:77]
        whole = [*ops.attack_loss(logits, labels, "cross_entropy"), ops.sm_taylor_softmax(logits, labels)]
        part = logits[rows], labels[rows]
        some = [*ops.attack_loss(*part, "cross_entropy"), ops.sm_taylor_softmax(*part)]
        for column, few in zip(whole, some, strict=True):
            assert torch.equal(column[rows], few)

    @pytest.mark.parametrize(
        ("dtype", "shape", "rule"), pairs(DTYPES, [(3, 32, 32), (3, 7, 7), (3, 224, 224), (6145,)], ops.RULES)
    )
    def test_a_step_of_a_slot_does_not_depend_on_the_others(self, dtype, shape, rule):
        search = Search.running(12, shape, device=DEVICE, dtype=dtype)
        feedback = draw_feedback(search.batch.x, torch.arange(12, device=DEVICE) % 3 == 1)
        alone = search.copy()
        alone.batch = ops.SlotBatch(*(column[7:9].clone() for column in alone.batch))
        few = ops.Feedback(*(column[7:9].clone() for column in feedback))
        check_search_step(search, feedback, CONFIGS[rule])
        alone.step(few, CONFIGS[rule])
        assert torch.equal(search.batch.x[7:9], alone.batch.x)
        for name, column, column_alone in zip(ops.SampleTable._fields, search.table, alone.table, strict=True):
            assert torch.equal(column[7:9], column_alone[7:9]), name


class TestBeyond32Bits:
    """The last rows of tensors with more elements than an int counts."""

    def test_attack_loss_and_sm_taylor_softmax(self):
        rows, classes = 2**31 // 1000 + 100, 1000
        logits = torch.empty(rows, classes, dtype=torch.bfloat16, device=DEVICE).normal_()
        labels = torch.randint(classes, (rows,), device=DEVICE)
        last = logits[-50:].cpu(), labels[-50:].cpu()
        result = ops.attack_loss(logits, labels, "cross_entropy")
        for column, expected in zip(result, ops.attack_loss(*last, "cross_entropy"), strict=True):
            assert_close(column[-50:].float().cpu(), expected.float(), torch.bfloat16)
        assert_close(ops.sm_taylor_softmax(logits, labels)[-50:].cpu(), ops.sm_taylor_softmax(*last), torch.float32)

    def test_search_step(self):
        slots = 2**31 // 3072 + 100
        search = Search.begin(4, 4, (3, 32, 32), device=DEVICE, dtype=torch.bfloat16)
        x = torch.empty(slots, 3, 32, 32, dtype=torch.bfloat16, device=DEVICE).uniform_()
        idle = torch.full((slots,), -1, device=DEVICE)
        batch = ops.SlotBatch(x, idle.clone(), idle.clone())
        batch.sample_index[-4:] = torch.arange(4)
        grad = torch.zeros_like(x)
        grad[-4:].normal_()
        flags = torch.zeros_like(idle, dtype=torch.bool)
        feedback = ops.Feedback(grad, flags, idle, torch.ones(slots, device=DEVICE))
        small = ops.SlotBatch(*(column[-4:].cpu() for column in batch))
        table = ops.SampleTable(*(column.cpu() for column in search.table))
        answer = ops.Feedback(*(part[-4:].cpu() for part in feedback))
        empty = idle[:0], torch.zeros(1, dtype=torch.int64, device=DEVICE)
        ops.search_step_(batch, feedback, search.table, *empty, DDN, (0.0, 1.0))
        ops.search_step_(small, answer, table, *(part.cpu() for part in empty), DDN, (0.0, 1.0))
        assert_close(batch.x[-4:].cpu(), small.x, torch.bfloat16)

    def test_masked_sgd(self):
        length = 2**31 + 5
        param, grad = (torch.ones(length, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
        mask = torch.zeros(length, dtype=torch.bool, device=DEVICE)
        mask[-3:] = True
        ops.masked_sgd_([param], [grad], [], [mask], lr=0.5)
        assert param[-4:].tolist() == [1.0, 0.5, 0.5, 0.5]
        assert param[:-3].amin() == 1


class TestWholeSearches:
    @pytest.mark.parametrize("method", ["pgd", "ddn", "deepfool"])
    def test_graph_and_device_change_nothing(self, few, method):
        """Beyond rounding, which in the model depends on both."""
        model, images, labels = few
        options: dict[str, Any] = {"method": method, "batch_size": 16}
        there = find_min_adversarial(model, images, labels, **options)
        model, images, labels = model.to(DEVICE), images.to(DEVICE), labels.to(DEVICE)
        graph = find_min_adversarial(model, images, labels, **options)
        with mock.patch.object(loop, "cuda_graphed", lambda iterate, device: iterate):
            eager = find_min_adversarial(model, images, labels, **options)
        assert graph.found.all()
        for other in (eager.distance, there.distance.to(DEVICE)):
            torch.testing.assert_close(graph.distance, other, rtol=1e-2, atol=1e-4)

    @pytest.mark.parametrize("method", ["pgd", "ddn"])
    def test_the_size_of_the_batch_changes_nothing(self, few, method):
        model, images, labels = few
        model, images, labels = model.to(DEVICE), images.to(DEVICE), labels.to(DEVICE)
        results = [find_min_adversarial(model, images, labels, method=method, batch_size=size) for size in (1, 7, 64)]
        for other in results[1:]:
            torch.testing.assert_close(other.distance, results[0].distance, rtol=1e-2, atol=1e-4)
