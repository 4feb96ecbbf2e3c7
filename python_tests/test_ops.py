"""The ops as PyTorch sees them: schemas, fake kernels, devices, gradients."""

import math

import pytest
import torch
from op_tools import CONFIGS, Search, draw_feedback, draw_logits

from amun_ext import ops


def opcheck_attack_loss(device: str):
    logits, labels = draw_logits(5, 4, device=device, dtype=torch.float32)
    for loss in ops.LOSSES:
        yield (logits, labels, loss, 0.5), {}


def opcheck_search_step(device: str):
    running, idle = Search.running(3, (2, 4), device=device), Search.begin(3, 5, (2, 4), device=device)
    for search, rule in [(idle, "pgd"), *((running, rule) for rule in ops.RULES)]:
        feedback = draw_feedback(search.batch.x, torch.arange(3, device=device) == 1)
        rule, steps, *params = CONFIGS[rule]
        lists = search.batch, feedback, search.table[:2], search.table[2:]
        yield (*lists, search.queue, search.queue_position, rule, steps, params, (0.0, 1.0)), {}


def opcheck_masked_sgd(device: str):
    params = [torch.randn(shape).to(device) for shape in ((3, 4), (5,), ())]
    masks = [torch.rand(param.shape, device=device) < 0.5 for param in params]
    grads, buffers = ([torch.randn_like(param) for param in params] for _ in range(2))
    flags = dict.fromkeys(("maximize", "first", "gradient_only"), False)
    yield (params, grads, buffers, masks, 0.1, 0.9, 0.0, 0.1), {"nesterov": True, **flags}
    yield (params, grads, [], [], 0.1, 0.0, 0.0, 0.1), {"nesterov": False, **flags}


def opcheck_sm_taylor_softmax(device: str):
    for shape, floor in (((5, 4), -math.inf), ((2, 3, 5, 4), 1e-3)):
        logits, labels = torch.randn(shape).to(device), torch.randint(4, (5,)).to(device)
        yield (logits, labels, 4, 0.6, 2.0, floor), {}


OPCHECK = {
    "attack_loss": opcheck_attack_loss,
    "search_step_": opcheck_search_step,
    "masked_sgd_": opcheck_masked_sgd,
    "sm_taylor_softmax": opcheck_sm_taylor_softmax,
}
REGISTERED = sorted(
    name.removeprefix("amun_ext::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("amun_ext::")
)


class TestRegistration:
    @pytest.mark.parametrize("name", REGISTERED)
    def test_opcheck(self, device, name):
        for arguments, keywords in OPCHECK[name](device):
            torch.library.opcheck(getattr(torch.ops.amun_ext, name).default, arguments, keywords)

    def test_every_op_is_there(self):
        assert sorted(OPCHECK) == REGISTERED

    @pytest.mark.parametrize("name", REGISTERED)
    def test_has_a_kernel_for_the_device(self, device, name):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"amun_ext::{name}", device.upper())

    def test_results_have_no_gradient(self, device):
        """Also of the ops themselves, without the wrapper."""
        logits, labels = draw_logits(2, 3, device=device)
        logits.requires_grad_()
        results = [
            *ops.attack_loss(logits, labels),
            *torch.ops.amun_ext.attack_loss(logits, labels, "cross_entropy", 0.0),
            torch.ops.amun_ext.sm_taylor_softmax(logits, labels, 4, 0.6, 2.0, 0.1),
        ]
        assert not any(each.requires_grad for each in results)
