"""The training loop: its arithmetic against torch.optim by hand, its schedules, and what it leaves behind."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext import InputError
from amun_ext.models.fresh import reinitialised
from amun_ext.training import Part, Pass, Recipe, Run, crop_and_flip, fit


def net() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def part(count: int = 20, **options: bool) -> Part:
    return Part(TensorDataset(torch.rand(count, 1, 3, 4), torch.randint(0, 3, (count,))), **options)


class TestRecipe:
    def test_schedules(self) -> None:
        factors = {
            name: [Recipe(4, 1.0, name).lr_factor(epoch) for epoch in range(4)] for name in ("constant", "cosine")
        }
        assert factors["constant"] == [1, 1, 1, 1]
        assert factors["cosine"] == pytest.approx([1, 0.8535534, 0.5, 0.1464466])
        assert [Recipe(6, 1.0, "step:2").lr_factor(epoch) for epoch in range(6)] == pytest.approx(
            [1, 1, 0.1, 0.1, 0.01, 0.01]
        )

    @pytest.mark.parametrize(
        "change",
        [
            {"epochs": 0},
            {"epochs": 1.5},
            {"lr": -1.0},
            {"lr": float("nan")},
            {"batch_size": 0},
            {"momentum": -0.1},
            {"weight_decay": float("inf")},
            {"schedule": "step:0"},
            {"schedule": "linear"},
            {"schedule": "step:"},
        ],
    )
    def test_bad_settings(self, change: dict) -> None:
        with pytest.raises(InputError, match=f"^{next(iter(change))} must be"):
            Recipe(**{"epochs": 1, "lr": 0.1} | change)


class TestFit:
    def test_one_full_batch_is_one_step_of_sgd(self) -> None:
        model, data = net(), part()
        expected = net()
        expected.load_state_dict(model.state_dict())
        optimizer = torch.optim.SGD(expected.parameters(), lr=0.3, momentum=0.9, weight_decay=5e-4)
        for lr in (0.3, 0.03):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            images, labels = data.data.tensors
            nn.functional.cross_entropy(expected(images), labels).backward()
            optimizer.step()
        fit(model, [Pass([data])], Recipe(2, 0.3, "step:1", batch_size=20))
        torch.testing.assert_close(model.state_dict(), expected.state_dict())

    def test_lr_zero_changes_no_weight(self) -> None:
        model = net()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        fit(model, [Pass([part()])], Recipe(3, 0.0))
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())

    def test_seed_decides_and_the_random_state_is_put_back(self) -> None:
        data, start = part(50), net()
        results = []
        for seed in (0, 0, 1):
            model = nn.Sequential(nn.Dropout(0.5), net()).eval()
            model[1].load_state_dict(start.state_dict())
            state = torch.get_rng_state()
            fit(model, [Pass([data])], Recipe(2, 0.1, batch_size=16), Run(seed=seed))
            assert torch.equal(state, torch.get_rng_state())
            assert not model.training
            results.append(model[1][1].weight)
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])

    def test_parts_are_shuffled_together_and_every_sample_is_seen_once_an_epoch(self) -> None:
        class Recording(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear, self.seen = nn.Linear(12, 3), []

            def forward(self, x):
                self.seen.append(x[:, 0, 0, 0].tolist())
                return self.linear(x.flatten(1))

        model, labels = Recording(), torch.zeros(33, dtype=torch.long)
        values = torch.arange(66.0).view(66, 1, 1, 1).expand(66, 1, 3, 4) / 66
        parts = [Part(TensorDataset(some, labels)) for some in (values[:33], values[33:])]
        fit(model, [Pass(parts)], Recipe(1, 0.1, batch_size=13))
        assert [len(batch) for batch in model.seen] == [13, 13, 13, 13, 14]  # no batch of one: BatchNorm
        assert sorted(value for batch in model.seen for value in batch) == values[:, 0, 0, 0].tolist()
        assert any(min(batch) < 0.5 < max(batch) for batch in model.seen)

    def test_divergence_is_an_error(self) -> None:
        with pytest.raises(FloatingPointError, match="lower lr"):
            fit(net(), [Pass([part()])], Recipe(30, 1e30))

    def test_adversarial_parts_are_not_augmented(self) -> None:
        class Recording(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear, self.seen = nn.Linear(64, 2), []

            def forward(self, x):
                self.seen.append(x.clone())
                return self.linear(x.flatten(1))

        model, labels = Recording(), torch.zeros(40, dtype=torch.long)
        plain, moved = torch.rand(40, 1, 8, 8) + 1, torch.rand(40, 1, 8, 8) + 3
        fit(
            model,
            [Pass([Part(TensorDataset(plain, labels), augment=False), Part(TensorDataset(moved, labels))])],
            Recipe(1, 0.1, batch_size=80, augment=True),
        )
        (seen,) = model.seen
        kept = seen[[bool(((image >= 1) & (image < 2)).all()) for image in seen]]
        assert {tuple(image.flatten().tolist()) for image in kept} == {
            tuple(image.flatten().tolist()) for image in plain
        }
        originals = {tuple(image.flatten().tolist()) for image in moved}
        others = [tuple(image.flatten().tolist()) for image in seen if image.max() >= 3 or image.min() == 0]
        assert sum(image in originals for image in others) < 10

    def test_bad_parts(self) -> None:
        flat = Part(TensorDataset(torch.rand(4, 12), torch.zeros(4, dtype=torch.long)))
        with pytest.raises(InputError, match="parts must be at least one"):
            fit(net(), [], Recipe(1, 0.1))
        with pytest.raises(InputError, match="augment must be off"):
            fit(net(), [Pass([flat])], Recipe(1, 0.1, augment=True))


def test_crop_and_flip_moves_by_at_most_four_and_pads_with_zeros() -> None:
    image = torch.arange(1.0, 101.0).view(1, 1, 10, 10)
    seen = crop_and_flip(image.expand(500, -1, -1, -1), torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))[0, 0]
    possible = {}
    for top in range(9):
        for left in range(9):
            crop = padded[top : top + 10, left : left + 10]
            possible |= {
                tuple(view.flatten().tolist()): (top, left, flip) for flip, view in enumerate((crop, crop.flip(1)))
            }
    places = {possible[tuple(view.flatten().tolist())] for view in seen}
    assert {top for top, _, _ in places} == set(range(9))
    assert {left for _, left, _ in places} == set(range(9))
    assert {flip for _, _, flip in places} == {0, 1}


def test_reinitialised_gives_fresh_weights_and_keeps_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].running_mean.fill_(7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fresh = reinitialised(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not torch.equal(fresh[0].weight, model[0].weight)
    assert (fresh[1].running_mean == 0).all()


def test_reinitialised_refuses_what_it_cannot_draw_again() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(InputError, match=r"reset_parameters\(\) draws all weights anew, got old \['1.scale'\]"):
        reinitialised(nn.Sequential(nn.Linear(2, 3), Own()))


def test_reinitialised_refuses_weights_behind_a_parametrisation() -> None:
    """The reset of such a module writes the product, and would leave what was learned where it is."""
    for wrap in (nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm):
        with pytest.raises(InputError, match="draws all weights anew"):
            reinitialised(nn.Sequential(wrap(nn.Linear(4, 3))))
