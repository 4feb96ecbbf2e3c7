"""MaskedSGD beside torch.optim.SGD, and what it promises of its own."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from op_tools import DTYPES, assert_close
from pairs import pairs
from test_masked_sgd import HALF, assert_same_bits
from torch import Tensor, nn

from amun_ext import InputError, MaskedSGD, reference
from amun_ext.ops import accumulate_dtype


def draw_net(device="cpu", dtype=torch.float32) -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 3))
    return net.to(device, dtype)


def draw_masks(net: nn.Module, density: float = 0.5) -> dict[str, Tensor]:
    return {name: torch.rand(param.shape) < density for name, param in net.named_parameters()}


def give_gradients(*nets: nn.Module) -> None:
    """The same to all of them, in their dtypes and layouts."""
    for params in zip(*(net.parameters() for net in nets), strict=True):
        drawn = torch.randn(params[0].shape, dtype=torch.float64)
        for param in params:
            param.grad = torch.empty_like(param).copy_(drawn)


def momenta(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [optimizer.state[param]["momentum_buffer"] for group in optimizer.param_groups for param in group["params"]]


def assert_equal_nets(*nets: nn.Module) -> None:
    for net in nets[1:]:
        assert_same_bits(list(net.parameters()), list(nets[0].parameters()))


# All that torch.optim.SGD takes.
OPTION_NAMES = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
OPTIONS = [
    pytest.param(dict(zip(OPTION_NAMES, values, strict=True)), id="-".join(map(str, values)))
    for values in (
        (momentum, dampening, decay, nesterov, maximize)
        for momentum, dampening, nesterov in (
            (0, 0, False),
            (0, 0.5, False),
            (0.9, 0, False),
            (0.9, 0.5, False),
            (0.9, 0, True),
        )
        for decay in (0, 0.05)
        for maximize in (False, True)
    )
]
FULL = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05}


class TestMaskedSGDBesideSGD:
    @pytest.mark.parametrize(("dtype", "options", "masked"), pairs(DTYPES, OPTIONS, [False, True]))
    def test_equals_it_where_every_mask_is_true(self, device, dtype, options, masked):
        net = draw_net(device, dtype)
        # For half types SGD in float32, rounded after every step: its own rounds in between.
        twin = copy.deepcopy(net).to(accumulate_dtype(dtype))
        masks = draw_masks(net, 1.0) if masked else None
        optimizer = MaskedSGD(net.named_parameters(), 0.05, **options, masks=masks)
        expected = torch.optim.SGD(twin.parameters(), 0.05, **options)
        for _ in range(5):
            give_gradients(net, twin)
            for param, param_expected in zip(net.parameters(), twin.parameters(), strict=True):
                param_expected.grad.copy_(param.grad)
            optimizer.step()
            expected.step()
            pairs = list(zip(net.parameters(), twin.parameters(), strict=True))
            if options["momentum"]:
                pairs += zip(momenta(optimizer), momenta(expected), strict=True)
            for result, result_expected in pairs:
                assert_close(result.detach(), result_expected.detach(), dtype)
                result_expected.data.copy_(result)  # from one place to the next step: roundings do not add up

    @pytest.mark.parametrize("options", [{}, FULL, {"momentum": 0.9, "dampening": 0.5}], ids=str)
    def test_strict_is_to_restore_the_frozen_weights_and_their_momentum(self, device, options):
        net = draw_net(device, torch.float64)
        twin, masks = copy.deepcopy(net), draw_masks(net)
        optimizer = MaskedSGD(net.named_parameters(), 0.1, **options, masks=masks)
        expected = torch.optim.SGD(twin.parameters(), 0.1, **options)
        for _ in range(5):
            give_gradients(net, twin)
            frozen = [(param, param.detach().clone(), ~masks[name]) for name, param in twin.named_parameters()]
            kept = {param: state["momentum_buffer"].clone() for param, state in expected.state.items() if state}
            optimizer.step()
            expected.step()
            with torch.no_grad():
                for param, before, places in frozen:
                    param[places] = before[places]
                    if options.get("momentum"):
                        buffer = expected.state[param]["momentum_buffer"]
                        buffer[places] = kept.get(param, torch.zeros_like(param))[places]
        for param, param_expected in zip(net.parameters(), twin.parameters(), strict=True):
            assert_close(param.detach(), param_expected.detach(), torch.float64)

    def test_gradient_only_is_to_multiply_the_gradient(self, device):
        net = draw_net(device, torch.float64)
        twin, masks = copy.deepcopy(net), draw_masks(net)
        before = copy.deepcopy(net)
        optimizer = MaskedSGD(net.named_parameters(), 0.1, **FULL, masks=masks, mask_gradient_only=True)
        expected = torch.optim.SGD(twin.parameters(), 0.1, **FULL)
        for _ in range(5):
            give_gradients(net, twin)
            for param, mask in zip(twin.parameters(), masks.values(), strict=True):
                param.grad *= mask.to(device)
            optimizer.step()
            expected.step()
        for param, param_expected in zip(net.parameters(), twin.parameters(), strict=True):
            assert_close(param.detach(), param_expected.detach(), torch.float64)
        for name, param in net.named_parameters():  # which is why it is not the default
            was = before.get_parameter(name)
            assert (param[~masks[name]] != was[~masks[name]]).equal(was[~masks[name]] != 0)

    def test_a_gradient_that_comes_late(self, device):
        """Its first step is its own, whatever step the others make."""
        nets = [draw_net(device, torch.float64)]
        nets.append(copy.deepcopy(nets[0]))
        options = {"momentum": 0.9, "dampening": 0.5}
        optimizers = [
            MaskedSGD(nets[0].parameters(), 0.1, **options),
            torch.optim.SGD(nets[1].parameters(), 0.1, **options),
        ]
        for step in range(6):
            give_gradients(*nets)
            for net in nets:
                if step < 3:
                    net[3].weight.grad = None
                net[0].bias.grad = None
            for optimizer in optimizers:
                optimizer.step()
        for param, expected in zip(*(net.parameters() for net in nets), strict=True):
            assert_close(param.detach(), expected.detach(), torch.float64)
        assert nets[0][0].bias not in optimizers[0].state

    def test_continues_from_its_state_dict(self, device):
        nets = [draw_net(device, torch.float64)]
        nets.append(copy.deepcopy(nets[0]))
        expected, optimizer = torch.optim.SGD(nets[0].parameters(), 0.1, **FULL), MaskedSGD(nets[1].parameters(), 9.0)
        give_gradients(*nets)
        expected.step()
        nets[1].load_state_dict(nets[0].state_dict())
        optimizer.load_state_dict(expected.state_dict())
        give_gradients(*nets)
        for each in (expected, optimizer):
            each.step()
        for param, param_expected in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
            assert_close(param.detach(), param_expected.detach(), torch.float64)

    @pytest.mark.parametrize("as_tensor", [False, True])
    def test_schedulers_of_learning_rate_and_momentum(self, device, as_tensor):
        nets = [draw_net(device, torch.float64)]
        nets.append(copy.deepcopy(nets[0]))
        optimizers, schedulers = [], []
        for kind, net in zip((MaskedSGD, torch.optim.SGD), nets, strict=True):
            lr = torch.tensor(0.1, dtype=torch.float64) if as_tensor else 0.1
            optimizers.append(kind(net.parameters(), lr, momentum=0.9))
            schedulers.append(torch.optim.lr_scheduler.OneCycleLR(optimizers[-1], 0.3, total_steps=8))
        for _ in range(7):
            give_gradients(*nets)
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                scheduler.step()
        for param, expected in zip(*(net.parameters() for net in nets), strict=True):
            assert_close(param.detach(), expected.detach(), torch.float64)


class TestMaskedSGD:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_frozen_elements_are_bit_equal(self, device, dtype):
        net = draw_net(device, dtype)
        masks = draw_masks(net)
        before = copy.deepcopy(net)
        optimizer = MaskedSGD(net.named_parameters(), 0.1, **FULL, masks=masks)
        for _ in range(3):
            give_gradients(net)
            for param in net.parameters():
                param.grad.abs_().add_(1)  # all steps go one way, so that none takes back what another did
            net[0].weight.grad[~masks["0.weight"]] = torch.nan
            optimizer.step()
        for (name, param), was in zip(net.named_parameters(), before.parameters(), strict=True):
            assert_same_bits([param[~masks[name]]], [was[~masks[name]]])
            assert (param[masks[name]] != was[masks[name]]).all()
            assert (optimizer.state[param]["momentum_buffer"][~masks[name]] == 0).all()

    def test_groups_have_their_own_options_and_masks(self, device):
        net = draw_net(device, torch.float64)
        masks, twin = draw_masks(net), copy.deepcopy(net)
        head = {f"3.{name}": masks.pop(f"3.{name}") for name in ("weight", "bias")}
        named = list(net.named_parameters())
        group = {"params": named[4:], "lr": 0.5, "momentum": 0.0, "weight_decay": 0.3, "maximize": True, "masks": head}
        optimizer = MaskedSGD([{"params": named[:2]}, {"params": named[2:4]}], 0.1, masks=masks, momentum=0.9)
        optimizer.add_param_group(group)
        assert group["masks"] is head  # the caller's own is left alone
        for _ in range(3):
            give_gradients(net, twin)
            optimizer.step()
            for name, param in twin.named_parameters():
                # With momentum 0.9 in the same direction it would be more than this.
                if name in head:
                    rule = {"weight_decay": 0.3, "maximize": True}
                    reference.masked_sgd_([param], [param.grad], [], [head[name].to(device)], 0.5, **rule)
        for name, param in net.named_parameters():
            if name in head:
                assert_close(param.detach(), twin.get_parameter(name).detach(), torch.float64)
            else:
                assert_same_bits([param[~masks[name]]], [twin.get_parameter(name)[~masks[name]]])
                assert "momentum_buffer" in optimizer.state[param]

    def test_a_closure_is_called_with_gradients_on(self, device):
        weight = nn.Parameter(torch.tensor([3.0], device=device))
        optimizer = MaskedSGD([weight], 0.5)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = weight.square().sum()
            loss.backward()
            return loss

        assert optimizer.step(closure) == 9
        assert weight == 0
        optimizer.zero_grad()
        assert weight.grad is None

    def test_hooks(self, device):
        net, seen = draw_net(device), []
        optimizer = MaskedSGD(net.parameters(), 0.1)
        optimizer.register_step_pre_hook(lambda *_: seen.append(net[0].weight.detach().clone()))
        optimizer.register_step_post_hook(lambda *_: seen.append(net[0].weight.detach().clone()))
        give_gradients(net)
        optimizer.step()
        assert not torch.equal(*seen)

    @pytest.mark.parametrize("how", ["deepcopy", "pickle"])
    def test_copies_continue_alike(self, device, how):
        net = draw_net(device, torch.bfloat16)
        optimizer = MaskedSGD(
            net.named_parameters(),
            0.1,
            **FULL,
            masks=draw_masks(net),
            mask_gradient_only=True,
            momentum_dtype=torch.float32,
        )
        give_gradients(net)
        optimizer.step()
        pair = net, optimizer
        twin, again = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
        assert (again.mask_gradient_only, again.momentum_dtype) == (True, torch.float32)
        give_gradients(net, twin)
        for each in (optimizer, again):
            each.step()
        assert_equal_nets(net, twin)
        assert_same_bits(momenta(again), momenta(optimizer))
        with pytest.raises(InputError, match="masks must be there for every parameter"):
            again.add_param_group({"params": [("late", nn.Parameter(torch.zeros(3, device=device)))]})

    @pytest.mark.parametrize("momentum_dtype", [None, torch.float32])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_state_dict_restores_the_momentum_bit_by_bit(self, device, dtype, momentum_dtype):
        net = draw_net(device, dtype).to(memory_format=torch.channels_last)
        masks = draw_masks(net)
        optimizer = MaskedSGD(net.named_parameters(), 0.1, **FULL, masks=masks, momentum_dtype=momentum_dtype)
        for _ in range(3):
            give_gradients(net)
            optimizer.step()
        file = io.BytesIO()
        torch.save((net.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        saved, state = torch.load(file, weights_only=True)
        assert "masks" not in str(state)

        twin = draw_net(device, dtype)
        again = MaskedSGD(twin.named_parameters(), masks=masks)
        twin.load_state_dict(saved)
        again.load_state_dict(state)
        kept = torch.float32 if dtype in HALF and momentum_dtype else dtype
        assert {buffer.dtype for buffer in momenta(again)} == {kept}
        assert_same_bits(momenta(again), momenta(optimizer))
        give_gradients(net, twin)
        for each in (optimizer, again):
            each.step()
        assert_equal_nets(net, twin)
        assert_same_bits(momenta(again), momenta(optimizer))

    def test_a_state_dict_changed_by_a_hook_is_loaded(self, device):
        net = draw_net(device)
        optimizer = MaskedSGD(net.parameters(), 0.1, momentum=0.9)
        give_gradients(net)
        optimizer.step()
        state = optimizer.state_dict()

        def double(_, given):
            state = {index: {"momentum_buffer": 2 * own["momentum_buffer"]} for index, own in given["state"].items()}
            return {**given, "state": state}

        expected = [2 * buffer for buffer in momenta(optimizer)]
        optimizer.register_load_state_dict_pre_hook(double)
        optimizer.load_state_dict(state)
        assert_same_bits(momenta(optimizer), expected)
        optimizer.load_state_dict({**state, "state": {}})
        assert not optimizer.state

    def test_state_dtype_of_other_precisions_is_their_own(self, device):
        net = draw_net(device, torch.float64)
        optimizer = MaskedSGD(net.parameters(), 0.1, momentum=0.9, momentum_dtype=torch.float32)
        give_gradients(net)
        optimizer.step()
        assert {buffer.dtype for buffer in momenta(optimizer)} == {torch.float64}

    def test_grad_scaler_leaves_out_a_step_that_overflowed(self, device):
        nets = [draw_net(device)]
        nets.append(copy.deepcopy(nets[0]))
        masks, scaler = draw_masks(nets[0]), torch.amp.GradScaler(device, init_scale=8.0)
        optimizers = [MaskedSGD(net.named_parameters(), 0.1, **FULL, masks=masks) for net in nets]
        images, labels = torch.randn(4, 2, 4, 4, device=device), torch.arange(4, device=device) % 3
        for overflows in (False, True, False):
            if not overflows:
                optimizers[1].zero_grad()
                F.cross_entropy(nets[1](images), labels).backward()
                optimizers[1].step()
            optimizers[0].zero_grad()
            scaler.scale(F.cross_entropy(nets[0](images), labels)).backward()
            if overflows:
                nets[0][3].bias.grad[1] = torch.inf
            scaler.step(optimizers[0])
            scaler.update()
        assert scaler.get_scale() == 4
        assert_equal_nets(*nets)  # scaled by powers of two

    def test_compiles_without_a_graph_break(self, device):
        nets = [draw_net(device)]
        nets.append(copy.deepcopy(nets[0]))
        masks = draw_masks(nets[0])
        optimizers = [MaskedSGD(net.named_parameters(), 0.1, **FULL, masks=masks) for net in nets]
        compiled = torch.compile(lambda: optimizers[1].step(), backend="aot_eager", fullgraph=True)
        for _ in range(3):
            give_gradients(*nets)
            optimizers[0].step()
            compiled()
        assert_equal_nets(*nets)

    @pytest.mark.parametrize("change", ["channels_last", "double", "bfloat16", "device"])
    def test_a_model_that_changes_between_steps(self, device, change):
        net = draw_net("cpu" if change == "device" else device)
        masks = draw_masks(net)
        optimizer = MaskedSGD(net.named_parameters(), 0.1, momentum=0.9, masks=masks)
        give_gradients(net)
        optimizer.step()
        before, kept = copy.deepcopy(net), [buffer.clone() for buffer in momenta(optimizer)]
        changes = {
            "channels_last": {"memory_format": torch.channels_last},
            "double": {"dtype": torch.float64},
            "bfloat16": {"dtype": torch.bfloat16},
            "device": {"device": device},
        }
        net.to(**changes[change])
        give_gradients(net)
        optimizer.step()
        for (name, param), was, buffer in zip(net.named_parameters(), before.parameters(), kept, strict=True):
            mask = masks[name].to(device)
            was = was.detach().to(param)
            moved = was.double() - 0.1 * (0.9 * buffer.to(device, torch.float64) + param.grad.double())
            assert torch.equal(param[~mask], was[~mask])
            assert_close(param.detach(), moved.where(mask, was.double()), param.dtype)
            assert optimizer.state[param]["momentum_buffer"].stride() == param.stride()
