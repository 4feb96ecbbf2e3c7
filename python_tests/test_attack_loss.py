"""attack_loss against its twin in plain PyTorch, autograd and whole numbers."""

import math

import pytest
import torch
import torch.nn.functional as F
from op_tools import DTYPES, assert_close, check_attack_loss, directions, draw_logits
from pairs import pairs
from torch import Tensor

from amun_ext import ops, reference
from amun_ext.ops import accumulate_dtype

SCALES = [0.1, 1.0, 10.0, 100.0, 1e3, 1e4]
# Around the lanes of a warp, and what a warp can keep in registers.
SIZES = [(0, 10), (1, 2), (7, 2), (41, 10), (5, 31), (5, 33), (3, 64), (3, 65), (9, 1000), (5, 1032), (5, 3000)]
SPOILT = ["a NaN at the label", "a NaN elsewhere", "label K", "label -1"]
every_loss = pytest.mark.parametrize("loss", ops.LOSSES)


class TestAttackLoss:
    @pytest.mark.parametrize(("dtype", "size", "loss"), pairs(DTYPES, SIZES, ops.LOSSES))
    def test_matches_the_reference(self, backend, dtype, size, loss):
        result = check_attack_loss(*draw_logits(*size, device=backend, dtype=dtype), loss)
        assert result.margin.dtype == accumulate_dtype(dtype)
        assert result.grad_logits.dtype == dtype

    @pytest.mark.parametrize(("dtype", "scale", "loss"), pairs(DTYPES, SCALES, ops.LOSSES))
    def test_every_finite_row_has_a_direction(self, device, dtype, scale, loss):
        logits, labels = draw_logits(40, 17, scale, device=device, dtype=dtype)
        gradient = check_attack_loss(logits, labels, loss).grad_logits.double()
        assert (gradient.gather(1, labels[:, None]) == -1).all()
        # The other entries are a distribution: what one class loses, the others gain.
        assert_close(gradient.sum(1), torch.zeros(40), dtype)

    @pytest.mark.parametrize(("dtype", "loss"), pairs(DTYPES, ops.LOSSES))
    def test_ties_go_to_the_first_class(self, backend, dtype, loss):
        logits = torch.randint(3, (200, 5)).to(device=backend, dtype=dtype)
        labels = torch.randint(5, (200,), device=backend)
        result = check_attack_loss(logits, labels, loss)
        assert torch.equal(result.predicted, logits.argmax(1))
        own = logits.gather(1, labels[:, None])[:, 0]
        tied = own == logits.scatter(1, labels[:, None], -1).amax(1)
        # An eighth of the rows or more, of which 200 have none once in 10^12 draws.
        assert (tied & result.adversarial).any()
        assert (tied & ~result.adversarial).any()
        assert (result.margin[tied & result.adversarial] == 0).all()
        # The label still wins: a rounding of its logit is left to go.
        left = torch.finfo(result.margin.dtype).eps * own.to(result.margin).where(own > 0, 1)
        assert torch.equal(result.margin[tied & ~result.adversarial], left[tied & ~result.adversarial])

    @pytest.mark.parametrize(("dtype", "loss", "classes"), pairs(DTYPES, ops.LOSSES, [4, 40]))
    def test_infinite_logits(self, backend, dtype, loss, classes):
        logits, labels = draw_logits(200, classes, device=backend, dtype=dtype)
        drawn = torch.rand(logits.shape, device=backend)
        logits[drawn < 0.8 / classes], logits[drawn > 1 - 0.8 / classes] = -torch.inf, torch.inf
        assert not check_attack_loss(logits, labels, loss).grad_logits.isnan().any()

    @pytest.mark.parametrize(("dtype", "spoilt", "loss"), pairs(DTYPES, SPOILT, ops.LOSSES))
    def test_a_row_with_nan_does_not_change_the_others(self, backend, dtype, spoilt, loss):
        logits, labels = draw_logits(50, 9, device=backend, dtype=dtype)
        expected = ops.attack_loss(logits.clone(), labels.clone(), loss)
        rows = torch.arange(50, device=backend) % 3 == 1
        if "NaN" in spoilt:
            logits[rows, labels[rows] if "label" in spoilt else (labels[rows] + 1) % 9] = torch.nan
        else:
            labels[rows] = 9 if spoilt == "label K" else -1

        result = ops.attack_loss(logits, labels, loss)
        assert (result.predicted[rows] == -1).all()
        assert not result.adversarial[rows].any()
        assert result.margin[rows].isnan().all()
        assert (result.grad_logits[rows] == 0).all()
        for column, column_expected in zip(result, expected, strict=True):
            assert torch.equal(column[~rows], column_expected[~rows])

    @every_loss
    def test_any_layout_of_the_logits(self, device, loss):
        logits, labels = draw_logits(12, 10, device=device)
        expected = ops.attack_loss(logits, labels, loss)
        wide = torch.zeros(12, 20, dtype=logits.dtype, device=device)
        wide[:, ::2] = logits
        for same in (logits.t().contiguous().t(), wide[:, ::2]):
            assert not same.is_contiguous()
            assert all(map(torch.equal, ops.attack_loss(same, labels, loss), expected))
        one_row = ops.attack_loss(logits[:1].expand(5, 10), labels[:1].expand(5), loss)
        assert torch.equal(one_row.grad_logits, expected.grad_logits[:1].expand(5, 10))

    @every_loss
    def test_compiles_without_a_graph_break(self, device, loss):
        def attacked(images: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
            result = ops.attack_loss(images @ weight, labels, loss, 0.5)
            return torch.where(result.adversarial[:, None], 0.0, result.grad_logits @ weight.t())

        arguments = torch.randn(6, 8).to(device), torch.randn(8, 5).to(device), torch.randint(5, (6,)).to(device)
        compiled = torch.compile(attacked, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(*arguments), attacked(*arguments))

    @pytest.mark.parametrize(
        ("logits", "labels", "message"),
        [
            (torch.zeros(3), torch.zeros(3, dtype=torch.int64), r"logits .* shape \[B, K\], got \[3\]"),
            (torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), r"logits .* two classes .*, got \[3, 1\]"),
            (torch.zeros(0, 2**31), torch.zeros(0, dtype=torch.int64), r"logits .* 2\^30, got \[0, 2147483648\]"),
            (torch.zeros(3, 2).int(), torch.zeros(3, dtype=torch.int64), "logits .* float32, .*, got Int"),
            (torch.zeros(3, 2), torch.zeros(3, dtype=torch.int32), "labels .* dtype Long, got Int"),
            (torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64), r"labels .* shape \[3\], got \[4\]"),
            (torch.zeros(3, 2), torch.zeros(3, 1, dtype=torch.int64), r"labels .* shape \[3\], got \[3, 1\]"),
        ],
    )
    def test_wrong_arguments_are_named(self, device, logits, labels, message):
        with pytest.raises(RuntimeError, match=message):
            ops.attack_loss(logits.to(device), labels.to(device))

    def test_unknown_loss(self, device):
        with pytest.raises(RuntimeError, match=r'loss .*, got "hinge"'):
            ops.attack_loss(*draw_logits(3, 2, device=device), "hinge")


class TestDirection:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("scale", SCALES)
    def test_cross_entropy_has_the_direction_of_its_gradient(self, device, dtype, scale):
        logits, labels = draw_logits(60, 10, scale, device=device, dtype=dtype)
        result = ops.attack_loss(logits, labels, "cross_entropy")
        wide = logits.double()
        if scale > 1:
            # The direction does not depend on the label's own logit (which the smaller scales confirm), so autograd is
            # asked where the softmax does not saturate.
            others = wide.scatter(1, labels[:, None], -torch.inf)
            wide = wide.scatter(1, labels[:, None], others.amax(1, keepdim=True))
        wide.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(wide, labels, reduction="sum"), wide)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-10  # autograd's own 1 - p is what limits float64
        actual = directions(result.grad_logits.double())
        torch.testing.assert_close(actual, directions(gradient), rtol=0, atol=tolerance)

    def test_margin_has_the_gradient_of_the_margin(self, device):
        logits, labels = draw_logits(60, 10, device=device, dtype=torch.float64)
        logits.requires_grad_()
        reference.attack_loss(logits, labels).margin.neg().sum().backward()
        assert torch.equal(ops.attack_loss(logits, labels, "margin").grad_logits, logits.grad)


class TestMinMargin:
    @pytest.mark.parametrize(("dtype", "min_margin"), pairs(DTYPES, [1e-3, 0.5, 3.0]))
    def test_matches_the_reference(self, backend, dtype, min_margin):
        logits, labels = draw_logits(200, 7, device=backend, dtype=dtype)
        logits = (logits * 64).round() / 64  # or rounding may decide whether a lead is min_margin
        drawn = torch.rand(logits.shape, device=backend)
        logits[drawn < 0.02], logits[drawn > 0.98] = -torch.inf, torch.inf
        logits[::9, 3] = torch.nan
        check_attack_loss(logits, labels, "margin", min_margin)

    @pytest.mark.parametrize(("dtype", "min_margin"), pairs(DTYPES, [0, 1, 2]))
    def test_a_row_is_adversarial_if_another_class_leads_by_it(self, device, dtype, min_margin):
        """In whole numbers, where nothing is rounded and leads are often min_margin itself."""
        logits, labels = torch.randint(4, (400, 5), device=device), torch.randint(5, (400,), device=device)
        own = logits.gather(1, labels[:, None])
        lead = (logits.scatter(1, labels[:, None], -1).amax(1, keepdim=True) - own)[:, 0]
        result = ops.attack_loss(logits.to(dtype), labels, "margin", min_margin)
        assert torch.equal(result.adversarial, (logits.argmax(1) != labels) & (lead >= min_margin))
        won = (min_margin == 0) & (lead == 0) & ~result.adversarial  # where a rounding is left to go
        assert torch.equal(result.margin[~won], (min_margin - lead).to(result.margin)[~won])
        assert (result.margin[won] > 0).all()
        if min_margin:
            assert result.adversarial[lead == min_margin].all()
            assert ((result.predicted != labels) & ~result.adversarial).any()  # ahead, but by too little

    @every_loss
    def test_changes_neither_prediction_nor_gradient(self, device, loss):
        logits, labels = draw_logits(200, 5, device=device)
        without, result = ops.attack_loss(logits, labels, loss), ops.attack_loss(logits, labels, loss, 2.0)
        assert torch.equal(result.predicted, logits.argmax(1))
        assert torch.equal(result.grad_logits, without.grad_logits)
        assert_close(result.margin, without.margin + 2, logits.dtype)
        assert (without.adversarial & ~result.adversarial).any()
        assert not (result.adversarial & ~without.adversarial).any()

    @pytest.mark.parametrize("min_margin", [-1e-9, -1.0, math.nan, math.inf, 1e300])
    def test_out_of_range(self, device, min_margin):
        with pytest.raises(RuntimeError, match="min_margin must be finite and not negative, got"):
            ops.attack_loss(*draw_logits(3, 2, device=device), "margin", min_margin)
