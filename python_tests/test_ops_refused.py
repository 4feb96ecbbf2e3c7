"""What the ops refuse: tensors of the wrong kind, without values or with shared memory, and numbers out of range."""

import math

import pytest
import torch
from op_tools import CONFIGS, PGD, Search, draw_feedback
from pairs import pairs
from torch import Tensor

from amun_ext import ops
from amun_ext.ops import Feedback, SampleTable, SlotBatch

LISTS = (SlotBatch, Feedback, SampleTable)
WRITTEN = [*SlotBatch._fields, *SampleTable._fields[2:], "queue_position"]
OTHERS = ("x", "grad", "inputs", "images", "labels", "margin", "queue", "queue_position", "status")


def draw_step(dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a step by name, two of whose four slots run."""
    search = Search.begin(4, 6, (2, 3), eps=0, device=device, dtype=dtype)
    search.batch.sample_index[:2] = torch.arange(2)
    return search.tensors(draw_feedback(search.batch.x))


def step(tensors: dict[str, Tensor], bounds: tuple[float, float] = (0.0, 1.0), **config) -> None:
    lists = [kind(*(tensors[name] for name in kind._fields)) for kind in LISTS]
    ops.search_step_(*lists, tensors["queue"], tensors["queue_position"], PGD._replace(**config), bounds)


def test_a_correct_step_is_accepted() -> None:
    step(tensors := draw_step())
    assert tensors["x"].isfinite().all()
    assert (tensors["eps"][:2] > 0).all()


class TestTensors:
    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("x", lambda x: x.int(), "float32, float64, float16 or bfloat16, got Int"),
            ("x", lambda x: x.transpose(1, 2), "contiguous"),
            ("x", lambda x: x[0, 0, 0], "batch dimension, got a scalar"),
            ("x", lambda x: x.requires_grad_(), "not require grad"),
            ("grad", lambda grad: grad[:3], r"4 rows .*, got \[3, 2, 3\]"),
            ("grad", lambda grad: grad[..., :2], r"4 rows .*, got \[4, 2, 2\]"),
            ("grad", lambda grad: grad.double(), "dtype Float, got Double"),
            ("inputs", lambda inputs: inputs.flatten(1), r"6 rows .*, got \[6, 6\]"),
            ("inputs", lambda inputs: inputs[:1].expand(6, 2, 3), "contiguous"),
            ("images", lambda images: images[:5], r"6 rows .*, got \[5, 2, 3\]"),
            ("images", lambda images: images.half(), "dtype Float, got Half"),
            ("images", lambda images: images[:1].expand(6, 2, 3), "contiguous"),
            ("sample_index", lambda index: index.int(), "dtype Long, got Int"),
            ("sample_index", lambda index: index[1:], r"shape \[4\], got \[3\]"),
            ("sample_index", lambda index: index.repeat_interleave(2)[::2], "contiguous"),
            ("slot_labels", lambda labels: labels[:, None], r"shape \[4\], got \[4, 1\]"),
            ("adversarial", lambda flags: flags.to(torch.uint8), "dtype Bool, got Byte"),
            ("predicted", lambda predicted: predicted[:2], r"shape \[4\], got \[2\]"),
            ("margin", lambda margin: margin.half(), "dtype Float, got Half"),
            ("margin", lambda margin: margin[1:], r"shape \[4\], got \[3\]"),
            ("labels", lambda labels: labels.float(), "dtype Long, got Float"),
            ("found_labels", lambda labels: labels[:1], r"shape \[6\], got \[1\]"),
            ("eps", lambda eps: eps.double(), "dtype Float, got Double"),
            ("distance", lambda distance: distance.half(), "dtype Float, got Half"),
            ("step_count", lambda steps: steps.long(), "dtype Int, got Long"),
            ("grad_evals", lambda evals: evals.long(), "dtype Int, got Long"),
            ("status", lambda status: status.int(), "dtype Char, got Int"),
            ("queue", lambda queue: queue[None], r"shape \[Q\], got \[1, 6\]"),
            ("queue", lambda queue: queue.int(), "dtype Long, got Int"),
            ("queue_position", lambda position: position[0], r"shape \[1\], got \[\]"),
        ],
    )
    def test_of_the_wrong_kind_are_named(self, device, name, change, message):
        tensors = draw_step(device=device)
        tensors[name] = change(tensors[name])
        with pytest.raises(RuntimeError, match=f"{name} must .*{message}"):
            step(tensors)

    @pytest.mark.parametrize("place", range(4))
    def test_too_few_of_a_list(self, place):
        search = Search.running(2, (3,))
        arguments = [search.batch, draw_feedback(search.batch.x), search.table[:2], search.table[2:]]
        name = ("batch", "feedback", "samples", "state")[place]
        arguments[place] = arguments[place][:-1]
        rule, steps, *params = PGD
        with pytest.raises(RuntimeError, match=f"{name} must have . entries"):
            torch.ops.amun_ext.search_step_(
                *arguments, search.queue, search.queue_position, rule, steps, params, (0.0, 1.0)
            )


def overlapping(one: torch.Tensor, other: torch.Tensor, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both of them, the second in a memory that begins `offset` bytes behind the beginning of the first."""
    size = max(one.nbytes, offset + other.nbytes)
    memory = torch.zeros(-(-size // 8), dtype=torch.int64).view(torch.uint8)
    views = [
        memory[start : start + each.nbytes].view(each.dtype).view(each.shape)
        for start, each in ((0, one), (offset, other))
    ]
    return views[0].copy_(one), views[1].copy_(other)


class TestMemory:
    @pytest.mark.parametrize(
        ("name", "other"), [(name, other) for name in WRITTEN for other in OTHERS if name != other]
    )
    def test_written_memory_must_not_overlap(self, name: str, other: str) -> None:
        for behind in (0, 8)[: 1 + (draw_step()[name].nbytes > 8)]:
            tensors = draw_step()
            tensors[name], tensors[other] = overlapping(tensors[name], tensors[other], behind)
            with pytest.raises(RuntimeError, match="must not share memory") as refused:
                step(tensors)
            assert name in str(refused.value)
            assert other in str(refused.value)

    def test_read_memory_may_overlap(self) -> None:
        tensors = draw_step()
        tensors["queue"], tensors["labels"] = overlapping(tensors["queue"], tensors["labels"], 8)
        tensors["labels"].fill_(1)
        step(tensors)

    def test_neighbours_in_one_memory_do_not_overlap(self) -> None:
        tensors = draw_step()
        for names in (("x", "grad"), ("eps", "distance"), ("inputs", "images")):
            one, other = (tensors[name] for name in names)
            tensors |= dict(zip(names, overlapping(one, other, one.nbytes), strict=True))
        step(tensors)

    @pytest.mark.parametrize(
        "names", [("params", "grads"), ("params", "buffers"), ("buffers", "grads"), ("params", "masks")]
    )
    @pytest.mark.parametrize("behind", [0, 8])
    def test_sgd(self, names: tuple[str, str], behind: int) -> None:
        tensors = {name: torch.zeros(6) for name in ("params", "grads", "buffers")}
        tensors["masks"] = torch.ones(6, dtype=torch.bool)
        tensors |= dict(zip(names, overlapping(*(tensors[name] for name in names), behind), strict=True))
        with pytest.raises(RuntimeError, match="must not share memory"):
            ops.masked_sgd_(*([each] for each in tensors.values()), lr=0.1, momentum=0.9)
        gradient = torch.ones(6)
        params = [torch.zeros(6), torch.zeros(6)]
        ops.masked_sgd_(params, [gradient, gradient], [], [], 0.1)  # read twice
        assert all(torch.equal(each, torch.full((6,), -0.1)) for each in params)

    def test_parameters_that_overlap_in_part(self) -> None:
        memory = torch.zeros(9)
        with pytest.raises(RuntimeError, match="params and params must not share memory"):
            ops.masked_sgd_([memory[:6], memory[3:]], [torch.ones(6)] * 2, [], [], 0.1)


class TestMeta:
    @pytest.mark.parametrize("name", draw_step())
    def test_one_meta_tensor_among_others(self, name: str) -> None:
        tensors = draw_step()
        before = {key: each.clone() for key, each in tensors.items()}
        tensors[name] = tensors[name].to("meta")
        with pytest.raises(RuntimeError, match="must be on the device of the first"):
            step(tensors)
        assert all(key == name or torch.equal(each, before[key]) for key, each in tensors.items())

    def test_in_the_other_ops(self) -> None:
        logits, labels = torch.rand(2, 3), torch.zeros(2, dtype=torch.int64)
        for one, other in ((logits.to("meta"), labels), (logits, labels.to("meta"))):
            with pytest.raises(RuntimeError, match="must be on the device of the first"):
                torch.ops.amun_ext.attack_loss(one, other, "margin", 0.0)
            with pytest.raises(RuntimeError, match="must be on the device of the first"):
                torch.ops.amun_ext.sm_taylor_softmax(one, other, 4, 0.6, 2.0, 0.1)
        param, grad = torch.zeros(3), torch.ones(3)
        for one, other in ((param.to("meta"), grad), (param, grad.to("meta"))):
            with pytest.raises(RuntimeError, match="must be on the device of the first"):
                ops.masked_sgd_([one], [other], [], [], 0.1)
        assert torch.equal(param, torch.zeros(3))

    def test_meta_tensors_give_meta_results(self) -> None:
        logits, labels = torch.rand(2, 3, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
        assert all(each.is_meta for each in ops.attack_loss(logits, labels))
        assert ops.sm_taylor_softmax(logits, labels).is_meta
        step({name: each.to("meta") for name, each in draw_step().items()})


POSITIVE = ("step_fraction", "last_step_fraction", "eps_max", "start", "overshoot")
LARGEST = r"1.84467e\+19"  # whose square is finite in float32


class TestNumbers:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"steps": 0}, r"steps .* in \[1, 2\^31\), got 0"),
            ({"steps": 2**31}, r"steps .*, got 2147483648"),
            ({"eps_growth": 1.0}, rf"eps_growth .* in \(1, {LARGEST}\], got 1"),
            ({"last_eps_growth": 1.0}, "last_eps_growth .*, got 1"),
            ({"eps_growth": math.nan}, "eps_growth .*, got nan"),
            ({"last_eps_growth": math.inf}, "last_eps_growth .*, got inf"),
            (
                {"rule": "ddn", "eps_growth": 1.5, "last_eps_growth": 1.1},
                "eps_growth .* less than 1.5 with ddn, got 1.5",
            ),
            ({"pull_back": 0.0}, r"pull_back .* in \(0, 1\], got 0"),
            ({"pull_back": 1.01}, r"pull_back .*, got 1.01"),
            ({"pull_back": math.nan}, "pull_back .*, got nan"),
            ({"rule": "PGD"}, 'rule .* "external", got "PGD"'),
            ({"rule": ""}, 'rule .* "external", got ""'),
            ({"bounds": (1, 1)}, "low .* less than high, got 1 and 1"),
            ({"bounds": (0, math.nan)}, "low .* less than high, got 0 and nan"),
            ({"step_fraction": 1e12, "eps_max": 1e12}, rf"step_fraction \* eps_max .* {LARGEST}, got 1e\+12"),
        ],
    )
    def test_of_a_step_are_named(self, device, change, message):
        with pytest.raises(RuntimeError, match=message):
            step(draw_step(device=device), **change)

    @pytest.mark.parametrize(
        ("rule", "field", "value"), pairs(ops.RULES, POSITIVE, [0.0, -1.0, math.nan, math.inf, 1e300])
    )
    def test_that_must_be_positive(self, device, rule, field, value):
        with pytest.raises(RuntimeError, match=rf"{field} .* in \(0, {LARGEST}\], got"):
            step(draw_step(device=device), **CONFIGS[rule]._replace(**{field: value})._asdict())

    @pytest.mark.parametrize("field", ["start", "overshoot"])
    def test_numbers_of_the_range_of_float64(self, field):
        step(draw_step(torch.float64), **{field: 1e150})

    @pytest.mark.parametrize(("rule", "field"), pairs(["pgd", "ddn", "deepfool"], POSITIVE))
    def test_the_largest_give_no_nan(self, rule, field):
        tensors, config = draw_step(), CONFIGS[rule]._replace(eps_growth=1.4, last_eps_growth=1.4, **{field: 1.8e18})
        for _ in range(5):
            step(tensors, **config._asdict())
            assert tensors["x"].isfinite().all()
            assert not tensors["eps"].isnan().any()

    @pytest.mark.parametrize("name", ["lr", "weight_decay", "dampening", "momentum"])
    def test_numbers_beyond_the_range_of_float32(self, name):
        buffers = [torch.zeros(3)] if name == "momentum" else []
        with pytest.raises(RuntimeError, match=rf"{name} must be finite.*, got 1e\+300"):
            ops.masked_sgd_([torch.zeros(3)], [torch.ones(3)], buffers, [], **{"lr": 0.1, name: 1e300})
