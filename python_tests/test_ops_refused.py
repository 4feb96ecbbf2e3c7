"""What the ops refuse when they are called directly: tensors without values, shared memory, numbers out of range."""

import math

import pytest
import torch

from amun_ext import ops

PGD = ops.Schedule("pgd", 50, 0.1, 0.1, 2.0, 2.0, 10.0, 0.5, 1.0, 1.0)
WRITTEN = (
    "x",
    "slots",
    "slot_labels",
    "images",
    "found_labels",
    "eps",
    "distance",
    "round_step",
    "grad_evals",
    "status",
)
WRITTEN = (*WRITTEN, "cursor")


def step_tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A step's, in the order of the op."""
    real = ops.accumulate_dtype(dtype)
    return {
        "x": torch.rand(2, 6, dtype=dtype),
        "slots": torch.arange(2),
        "slot_labels": torch.zeros(2, dtype=torch.int64),
        "grad": torch.rand(2, 6, dtype=dtype),
        "adversarial": torch.zeros(2, dtype=torch.bool),
        "predicted": torch.zeros(2, dtype=torch.int64),
        "margin": torch.ones(2, dtype=real),
        "inputs": torch.rand(4, 6, dtype=dtype),
        "labels": torch.zeros(4, dtype=torch.int64),
        "images": torch.rand(4, 6, dtype=dtype),
        "found_labels": torch.zeros(4, dtype=torch.int64),
        "eps": torch.zeros(4, dtype=real),
        "distance": torch.full((4,), math.inf, dtype=real),
        "round_step": torch.zeros(4, dtype=torch.int32),
        "grad_evals": torch.zeros(4, dtype=torch.int32),
        "status": torch.zeros(4, dtype=torch.int8),
        "queue": torch.arange(4),
        "cursor": torch.tensor([2]),
    }


def step(tensors: dict[str, torch.Tensor], **schedule: float) -> None:
    torch.ops.amun_ext.search_step_(*tensors.values(), *PGD._replace(**schedule), 0.0, 1.0)


def test_a_step_as_it_should_be() -> None:
    step(tensors := step_tensors())
    assert tensors["x"].isfinite().all()
    assert (tensors["eps"][:2] > 0).all()


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
    @pytest.mark.parametrize("name", WRITTEN)
    @pytest.mark.parametrize(
        "other", ["x", "grad", "inputs", "images", "labels", "margin", "queue", "cursor", "status"]
    )
    def test_what_is_written_overlaps_nothing(self, name: str, other: str) -> None:
        if name == other:
            return
        for behind in (0, 8):
            tensors = step_tensors()
            if behind >= tensors[name].nbytes:
                continue
            tensors[name], tensors[other] = overlapping(tensors[name], tensors[other], behind)
            with pytest.raises(RuntimeError, match="must not share memory") as refused:
                step(tensors)
            assert name in str(refused.value)
            assert other in str(refused.value)

    def test_what_is_only_read_may_overlap(self) -> None:
        tensors = step_tensors()
        tensors["queue"], tensors["labels"] = overlapping(tensors["queue"], tensors["labels"], 8)
        tensors["labels"].fill_(1)
        step(tensors)

    def test_neighbours_in_one_memory_are_apart(self) -> None:
        tensors = step_tensors()
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
    @pytest.mark.parametrize("name", step_tensors())
    def test_one_without_values_among_others(self, name: str) -> None:
        tensors = step_tensors()
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

    def test_all_of_them_give_results_without_values(self) -> None:
        logits, labels = torch.rand(2, 3, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
        assert all(each.is_meta for each in ops.attack_loss(logits, labels))
        assert ops.sm_taylor_softmax(logits, labels).is_meta
        step({name: each.to("meta") for name, each in step_tensors().items()})


class TestNumbers:
    @pytest.mark.parametrize("field", ["step_fraction", "last_step_fraction", "eps_max", "start", "overshoot"])
    def test_without_a_square_in_float32(self, field: str) -> None:
        with pytest.raises(RuntimeError, match=rf"{field} must be at most 1.84467e\+19, got 1e\+300"):
            step(step_tensors(), **{field: 1e300})
        step(step_tensors(torch.float64), **{field: 1e150} if field in ("start", "overshoot") else {})

    def test_of_which_the_product_has_none(self) -> None:
        with pytest.raises(RuntimeError, match=r"step_fraction \* eps_max must be at most 1.84467e\+19, got 1e\+12 \*"):
            step(step_tensors(), step_fraction=1e12, eps_max=1e12)

    @pytest.mark.parametrize("rule", ["pgd", "ddn", "deepfool"])
    @pytest.mark.parametrize("field", ["step_fraction", "last_step_fraction", "eps_max", "start", "overshoot"])
    def test_the_largest_give_no_nan(self, rule: str, field: str) -> None:
        tensors = step_tensors()
        growth = 1.4 if rule == "ddn" else 2.0
        for _ in range(5):
            step(tensors, rule=rule, eps_growth=growth, last_eps_growth=growth, **{field: 1.8e18})
            assert tensors["x"].isfinite().all()
            assert not tensors["eps"].isnan().any()

    @pytest.mark.parametrize("name", ["lr", "weight_decay", "dampening", "momentum"])
    def test_that_float32_has_not(self, name: str) -> None:
        buffers = [torch.zeros(3)] if name == "momentum" else []
        with pytest.raises(RuntimeError, match=rf"{name} must be finite.*, got 1e\+300"):
            ops.masked_sgd_([torch.zeros(3)], [torch.ones(3)], buffers, [], **{"lr": 0.1, name: 1e300})

    def test_of_the_others(self) -> None:
        logits, labels = torch.rand(2, 3), torch.zeros(2, dtype=torch.int64)
        with pytest.raises(RuntimeError, match="gap must be finite"):
            ops.attack_loss(logits, labels, gap=1e300)
        for name in ("margin", "temperature", "floor"):
            with pytest.raises(RuntimeError, match=rf"{name} must be .*finite"):
                ops.sm_taylor_softmax(logits, labels, **{name: 1e300})


def test_results_have_no_gradient() -> None:
    """Also of the ops themselves, without the wrapper."""
    logits, labels = torch.rand(2, 3, requires_grad=True), torch.zeros(2, dtype=torch.int64)
    results = [
        *torch.ops.amun_ext.attack_loss(logits, labels, "cross_entropy", 0.0),
        torch.ops.amun_ext.sm_taylor_softmax(logits, labels, 4, 0.6, 2.0, 0.1),
    ]
    assert not any(each.requires_grad for each in results)
