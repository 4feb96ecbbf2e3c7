"""MaskedSGD: bad input is refused before anything moves."""

import copy
import math

import pytest
import torch
from test_masked_sgd_optimizer import assert_equal_nets, draw_masks, draw_net, give_gradients
from torch import nn

from amun_ext import InputError, MaskedSGD


class TestMaskedSGDErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lr": -0.1}, "lr must be a finite number, not negative, got -0.1"),
            ({"lr": math.nan}, "lr must be a finite number, not negative, got nan"),
            ({"lr": "0.1"}, "lr must be a finite number, not negative, got '0.1'"),
            ({"lr": torch.tensor([0.1, 0.2])}, "lr must be a finite number, not negative, got tensor"),
            ({"lr": torch.tensor(-1.0)}, "lr must be a finite number, not negative, got tensor"),
            ({"momentum": -0.5}, "momentum must be a finite number, not negative, got -0.5"),
            ({"dampening": math.inf}, "dampening must be a finite number, got inf"),
            ({"weight_decay": -1}, "weight_decay must be a finite number, not negative, got -1"),
            (
                {"nesterov": True},
                "nesterov must be with momentum and .*, got momentum 0.0, dampening 0.0",
            ),
            (
                {"nesterov": True, "momentum": 0.9, "dampening": 0.5},
                "nesterov .* got momentum 0.9, dampening 0.5",
            ),
            ({"momentum_dtype": torch.float16}, "momentum_dtype must be None or torch.float32, got torch.float16"),
        ],
        ids=str,
    )
    def test_options(self, options, message):
        with pytest.raises(InputError, match=message):
            MaskedSGD(draw_net().parameters(), **options)
        if "momentum_dtype" not in options:
            with pytest.raises(InputError, match=message):
                MaskedSGD([{"params": draw_net().parameters(), **options}])

    def test_masks(self):
        net = draw_net()
        good = draw_masks(net)
        for change, message in (
            (
                {"0.weight": None},
                r"masks must be there for every parameter that requires a gradient, got none for \['0.weight'\]",
            ),
            (
                {"7.bias": good["0.bias"]},
                r"masks must be for these parameters .*, got masks for \['7.bias'\]",
            ),
            ({"0.bias": good["1.bias"][:4]}, r"masks\['0.bias'\] must be of shape \(5,\), got \(4,\)"),
            ({"0.bias": good["0.bias"].float()}, r"masks\['0.bias'\] must be bool, got torch.float32"),
            ({"0.bias": [True] * 5}, r"masks\['0.bias'\] must be a tensor, got list"),
            ({"3.weight": good["3.weight"].to_sparse()}, r"masks\['3.weight'\] must be dense, got torch.sparse_coo"),
        ):
            masks = {name: mask for name, mask in (good | change).items() if mask is not None}
            with pytest.raises(InputError, match=message):
                MaskedSGD(net.named_parameters(), masks=masks)
        with pytest.raises(InputError, match=r"params must be \(name, parameter\) pairs, as masks go by name"):
            MaskedSGD(net.parameters(), masks=good)

    def test_a_late_group(self):
        net, late = draw_net(), ("late", nn.Parameter(torch.zeros(3)))
        optimizer = MaskedSGD(net.named_parameters(), masks=draw_masks(net))
        mask = torch.ones(3, dtype=torch.bool)
        for group, message in (
            ({}, r"masks must be there for every parameter that requires a gradient, got none for \['late'\]"),
            ({"masks": {"late": mask, "0.bias": mask}}, r"no others, got masks for \['0.bias'\]"),
            ({"masks": {"late": mask[:2]}}, r"masks\['late'\] must be of shape \(3,\), got \(2,\)"),
            ({"masks": {"late": mask}, "lr": -1.0}, "lr must be"),
        ):
            with pytest.raises(InputError, match=message):
                optimizer.add_param_group({"params": [late], **group})
            assert len(optimizer.param_groups) == 1
        optimizer.add_param_group({"params": [late], "masks": {"late": mask}})
        assert len(optimizer.param_groups) == 2

    def test_parameters_that_are_not_floating_point(self):
        with pytest.raises(InputError, match=r"params\[1\] must be floating point, got torch.complex64"):
            MaskedSGD([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, dtype=torch.complex64))])

    @pytest.mark.parametrize("named", [False, True])
    def test_sparse_gradients_are_refused_before_any_change(self, named):
        net = nn.Sequential(nn.Linear(3, 3), nn.Embedding(5, 3, sparse=True))
        optimizer = MaskedSGD(net.named_parameters() if named else net.parameters(), 0.1, momentum=0.9)
        before = copy.deepcopy(net)
        (net[0](torch.ones(1, 3)).sum() + net[1](torch.tensor([1])).sum()).backward()
        name = "1.weight" if named else r"params\[2\]"
        with pytest.raises(InputError, match=f"the gradient of {name} must be dense, got torch.sparse_coo"):
            optimizer.step()
        assert_equal_nets(net, before)
        assert not any(optimizer.state.values())

    def test_options_set_out_of_range_are_refused_before_any_change(self):
        net = draw_net()
        params, before = list(net.parameters()), copy.deepcopy(net)
        optimizer = MaskedSGD([{"params": params[:3]}, {"params": params[3:]}], 0.1, momentum=0.9)
        give_gradients(net)
        optimizer.param_groups[1]["lr"] = math.nan
        with pytest.raises(InputError, match="lr must be a finite number, not negative, got nan"):
            optimizer.step()
        assert_equal_nets(net, before)

    def test_a_step_that_was_refused_leaves_no_momentum(self):
        param = nn.Parameter(torch.zeros(3))
        optimizer = MaskedSGD([param], 0.1, momentum=0.9)
        param.grad = param.data  # as nobody should
        with pytest.raises(RuntimeError, match="must not share memory"):
            optimizer.step()
        assert not optimizer.state[param]

    def test_momentum_of_another_shape(self):
        param = nn.Parameter(torch.zeros(3))
        optimizer = MaskedSGD([param], 0.1, momentum=0.9)
        param.grad = torch.ones(3)
        optimizer.step()
        state = optimizer.state_dict()
        state["state"][0]["momentum_buffer"] = torch.zeros(1)
        with pytest.raises(InputError, match=r"momentum_buffer 0 must be of shape \(3,\), got \(1,\)"):
            optimizer.load_state_dict(state)
