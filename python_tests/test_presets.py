"""Presets against what is published."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext import unlearn
from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS, PRESETS

AMUN = Recipe(epochs=10, lr=0.01, schedule="step:1", batch_size=128, momentum=0.9, weight_decay=5e-4, augment=True)


def saliency(lr: float, epochs: int = 10) -> Recipe:
    return Recipe(epochs=epochs, lr=lr, batch_size=256, momentum=0.9, weight_decay=5e-4, augment=True)


class TestPresets:
    """Against what is published: options with the methods' defaults in place of what a preset does not name."""

    EXPECTED = {  # noqa: RUF012
        ("amun-paper", "amun"): {"include_forget": True, "search": "pgd", "recipe": AMUN},
        ("amun-paper", "amun+salun"): {"include_forget": True, "search": "pgd", "recipe": AMUN},
        ("amun-paper", "rl"): {"true_label": False, "order": "mixed", "recipe": AMUN},
        ("amun-paper", "salun"): {"true_label": False, "order": "mixed", "recipe": AMUN},
        ("amun-paper", "ft"): {"recipe": AMUN},
        ("amun-paper", "l1-sparse"): {"gamma": 5e-4, "gamma_schedule": "paper", "epochs_without": 0, "recipe": AMUN},
        ("amun-paper-large", "amun"): {"include_forget": False, "search": "pgd", "recipe": AMUN},
        ("amun-paper-large", "amun+salun"): {"include_forget": False, "search": "pgd", "recipe": AMUN},
        ("amun-code", "amun"): {"include_forget": True, "search": "pgd", "recipe": AMUN},
        ("amun-code", "amun+salun"): {
            "include_forget": True, "search": "pgd", "mask_gradient_only": True, "recipe": AMUN,
        },
        ("amun-code", "rl"): {"true_label": False, "order": "mixed", "recipe": AMUN},
        ("amun-code", "salun"): {"true_label": False, "order": "mixed", "mask_gradient_only": True, "recipe": AMUN},
        ("amun-code", "bs"): {"eps": 0.1, "teacher": "per_epoch", "require_wrong": False, "recipe": AMUN},
        ("amun-code", "ft"): {"recipe": AMUN},
        ("amun-code", "l1-sparse"): {"gamma": 5e-4, "gamma_schedule": "amun", "epochs_without": 0, "recipe": AMUN},
        ("unlearn-saliency", "rl"): {"true_label": True, "order": "sequential", "recipe": saliency(0.001)},
        ("unlearn-saliency", "salun"): {"true_label": True, "order": "sequential", "recipe": saliency(0.013)},
        ("unlearn-saliency", "ga"): {"recipe": saliency(1e-5, 5)},
        ("unlearn-saliency", "bs"): {
            "eps": 0.1, "teacher": "frozen", "require_wrong": False, "recipe": saliency(1e-6),
        },
        ("unlearn-saliency", "ft"): {"recipe": saliency(0.01)},
        ("unlearn-saliency", "l1-sparse"): {
            "gamma": 1e-4, "gamma_schedule": "unlearn-sparse", "epochs_without": 0, "recipe": saliency(0.01),
        },
        ("unlearn-saliency-2023", "salun"): {
            "true_label": True, "order": "sequential", "mask_gradient_only": True, "recipe": saliency(0.013),
        },
    }  # fmt: skip

    ALL = [(preset, method) for preset, methods in PRESETS.items() for method in methods]  # noqa: RUF012

    def test_are_these(self) -> None:
        assert set(self.ALL) == self.EXPECTED.keys()

    @pytest.mark.parametrize(("preset", "method"), ALL)
    def test_options(self, preset: str, method: str) -> None:
        expected = dict(self.EXPECTED[preset, method])
        options = dict(PRESETS[preset][method])
        assert options.pop("mask_gradient_only", False) == expected.pop("mask_gradient_only", False)
        own = METHODS[method].options
        assert {name: options.pop(name, own[name].default) for name in expected} == expected
        assert not options
        assert METHODS[method].fraction == (0.5 if method.endswith("salun") else None)

    @pytest.mark.parametrize(("preset", "method"), ALL)
    def test_run(self, preset: str, method: str) -> None:
        torch.manual_seed(2)  # a net that has examples of all six
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
        forget, retain = (TensorDataset(images, net(images).argmax(1)) for images in torch.rand(2, 6, 1, 8, 8))
        result = unlearn(net, forget, retain, method=method, preset=preset)
        assert not torch.equal(result[-1].weight, net[-1].weight)

    def test_explicit_options_come_first_one_by_one(self, monkeypatch) -> None:
        net, seen = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), []
        forget = TensorDataset(torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 1]))

        def told(model, forget, retain, run, *, true_label=None, order=None, recipe=AMUN) -> None:
            seen.append((true_label, order, recipe, run.mask_gradient_only))

        monkeypatch.setitem(METHODS, "salun", dataclasses.replace(METHODS["salun"], function=told))
        theirs = saliency(0.013)
        for own, expected in (
            ({}, (True, "sequential", theirs, True)),
            ({"order": "mixed"}, (True, "mixed", theirs, True)),
            ({"recipe": AMUN, "true_label": False}, (False, "sequential", AMUN, True)),
            ({"mask_gradient_only": False}, (True, "sequential", theirs, False)),
        ):
            unlearn(net, forget, method="salun", preset="unlearn-saliency-2023", **own)
            assert seen.pop() == expected
