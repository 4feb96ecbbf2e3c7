"""U-LiRA: what shadows are trained on, what they forget, whom they tell apart, and files that do not fit."""

import copy
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext import InputError, data, models
from amun_ext.auditing import Shadows, audit, load_shadows, train_shadows
from amun_ext.auditing import shadows as module
from amun_ext.auditing.shadows import auc_over_shadows, cost
from amun_ext.data import Splits
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.unlearning.config import resolve_config

TRAINING = Recipe(epochs=15, lr=0.1, schedule="cosine", batch_size=32)
SHORT = Recipe(epochs=1, lr=0.05, batch_size=32)
NOTHING = resolve_config("ft", recipe={"epochs": 1, "lr": 1e-6})


@pytest.fixture(scope="module")
def splits() -> Splits:
    """Digits with random labels for every other training sample: what is not memorised is not known."""
    digits = data.load("digits")
    images, labels = digits.train[:300]
    labels = labels.clone()
    labels[::2] = torch.randint(0, 10, (150,), generator=torch.Generator().manual_seed(1))
    return Splits(TensorDataset(images, labels), TensorDataset(*digits.test[:200]), digits.classes)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randperm(300, generator=torch.Generator().manual_seed(2))[:60]


@pytest.fixture
def model() -> nn.Module:
    return models.build("small-cnn", num_classes=10, in_channels=1, width=8)


@pytest.fixture
def train(model, splits, ids, tmp_path):
    def trained(**options) -> Shadows:
        told = {"splits": splits, "ids": ids, "unlearning": NOTHING, "recipe": SHORT, "out": tmp_path, "models": 6}
        return train_shadows(model, **told | options)

    return trained


class TestShadows:
    def test_each_is_trained_on_its_half_forgets_it_and_never_sees_the_other(
        self, train, splits, ids, monkeypatch
    ) -> None:
        seen, fitted = [], module.train_from_scratch

        class Spy:
            def __getattr__(self, name: str) -> object:
                return getattr(NOTHING, name)

            def unlearn(self, model, forget: TensorDataset, retain: TensorDataset, seed: int, **_: object) -> nn.Module:
                seen.append((forget, retain, seed))
                return NOTHING.unlearn(model, forget, retain, seed=seed)

        trained = []
        monkeypatch.setattr(module, "train_from_scratch", lambda *a: trained.append(a[1:4]) or fitted(*a))
        before = [int(row) for row in range(300) if row not in ids][:7]
        made = train(unlearning=Spy(), previously_forgotten=before)
        rows = made.rows
        assert torch.equal(rows[: made.ids], ids)
        assert len(rows) == 120
        assert ((rows[60:] >= 300) & (rows[60:] < 500)).all()
        assert len(rows.unique()) == 120
        assert (made.membership.sum(0) == 3).all()
        images = torch.cat([splits.train.tensors[0], splits.test.tensors[0]])
        kept = torch.ones(300, dtype=torch.bool)
        kept[torch.cat([ids, torch.tensor(before)])] = False
        for half, (data_of, _, seed), (forget, retain, same_seed) in zip(made.membership, trained, seen, strict=True):
            assert torch.equal(forget.tensors[0], images[rows[half]])
            assert torch.equal(retain.tensors[0], images[:300][kept])
            assert torch.equal(data_of.tensors[0], torch.cat([images[:300][kept], images[rows[half]]]))
            assert seed == same_seed

    def test_a_stopped_training_resumes(self, train, tmp_path) -> None:
        first = train()
        path = tmp_path / "shadow-0002.safetensors"
        path.unlink()
        with pytest.raises(InputError, match=r"complete pairs.*without shadow-0002\.safetensors"):
            load_shadows(tmp_path, models=6)
        again = train()
        assert torch.equal(again.signals["log-odds"], first.signals["log-odds"])
        assert torch.equal(load_shadows(tmp_path).rows, first.rows)

    @pytest.mark.filterwarnings("ignore:.*forget samples have no adversarial example")
    @pytest.mark.slow
    def test_two_workers_give_the_results_of_one(self, train, tmp_path) -> None:
        unlearning = resolve_config("amun", recipe={"epochs": 1, "lr": 0.01})
        one, two = (train(out=tmp_path / str(n), num_workers=n, unlearning=unlearning) for n in (1, 2))
        assert torch.equal(one.signals["log-odds"], two.signals["log-odds"])

    def test_test_samples_with_copies_in_the_training_set_are_left_out(self, train, splits) -> None:
        """Nor are more asked for than there are."""
        shown = torch.cat([splits.train.tensors[0][:160], splits.test.tensors[0][:40]])
        deep_copy = Splits(splits.train, TensorDataset(shown, splits.test.tensors[1]), splits.classes)
        made = train(splits=deep_copy)
        assert sorted((made.rows[60:] - 300).tolist()) == list(range(160, 200))

    @pytest.mark.filterwarnings("ignore:.*forget samples have no adversarial example")
    def test_the_search_is_that_of_the_method(self, train, monkeypatch) -> None:
        """Each shadow searches anew, with the settings of the method under audit."""
        amun = sys.modules["amun_ext.unlearning.amun"]  # the package's own name for it is the function
        asked, search = [], amun.find_min_adversarial
        monkeypatch.setattr(amun, "find_min_adversarial", lambda *a, **o: asked.append(o) or search(*a, **o))
        train(unlearning=resolve_config("amun", search="pgd", steps=7, recipe={"epochs": 1, "lr": 0.01}))
        assert [(o["method"], o["steps"]) for o in asked] == [("pgd", 7)] * 6

    def test_cost(self, splits, ids) -> None:
        told = cost(splits, ids, NOTHING, TRAINING, 16)
        assert told.startswith("16 shadow models: each is trained on 300 samples for 15 epochs and then forgets 60")


@pytest.mark.same_inputs
class TestAttack:
    def test_the_attack_finds_a_model_that_forgot_nothing_and_not_a_retrained_one(
        self, train, model, splits, ids, tmp_path
    ) -> None:
        """Retraining draws both kinds from one distribution: the area is 50, up to what 120 samples let one see."""
        kept = train(recipe=TRAINING, models=8, out=tmp_path / "ft")
        assert auc_over_shadows(kept)["mean"] > 75
        anew = train(
            recipe=SHORT, models=8, out=tmp_path / "anew", unlearning=resolve_config("retrain", recipe=vars(TRAINING))
        )
        assert auc_over_shadows(anew)["mean"] == pytest.approx(50, abs=8)

        original = fitted(model, splits.train)
        found = audit(original, splits, ids, shadows=kept, random_forget_set=True)
        assert found.verdict.answer == "not forgotten"
        assert found.verdict.reason.startswith("FT AUC of U-LiRA differs from 50")
        assert found.attacks["U-LiRA"]["audited"]["FT AUC"].low > 60
        assert "U-LiRA against 8 other runs of the method: FT AUC" in " ".join(found.to_text().split())
        assert found.to_dict()["runs"]["runs"] == 8
        assert "U-LiRA" in found.to_markdown()
        assert audit(original, splits, ids, shadows=kept).verdict.answer == "cannot tell"  # no random draw
        unsure = audit(
            original,
            splits,
            ids,
            shadows=kept,
            random_forget_set=True,
            equivalence_margin=found.verdict.difference - 1.0,
        )
        assert unsure.verdict.answer == "cannot tell"
        wide = (found.verdict.interval[1] - found.verdict.interval[0]) / 2
        assert unsure.verdict.required_ids == pytest.approx(60 * wide**2, abs=1)  # as many test samples are asked of

    def test_the_verdict_is_the_worse_answer(self, train, model, splits, ids, tmp_path) -> None:
        """A model is like the retrained one that it is, by confidence; an attack that sees nothing cannot clear it."""
        kept = train(recipe=TRAINING)
        original = fitted(model, splits.train)
        retrained = fitted(model, TensorDataset(*splits.train[[row for row in range(300) if row not in ids]]))
        same = audit(retrained, splits, ids, original=original, retrained=retrained, shadows=kept)
        assert same.verdict.answer == "forgotten"
        assert (
            "the model barely changed"
            in audit(original, splits, ids, original=original, retrained=original, shadows=kept).verdict.reason
        )
        found = audit(original, splits, ids, retrained=retrained, shadows=kept)
        assert found.verdict.answer == "not forgotten"
        named = [attack for attack in found.verdicts if f"By {attack} alone: " in found.to_text()]
        assert named == [attack for attack, each in found.verdicts.items() if each is not found.verdict]
        assert len(named) == 1

    def test_auc_over_shadows(self) -> None:
        """Shadows that answer +1 or -1 more for what they forgot, and those that answer at random."""
        forgot = module.draw_membership(400, 16)
        noise = torch.randn(16, 400, dtype=torch.float64)
        told = {
            sign: auc_over_shadows(Shadows(forgot, {"log-odds": noise + sign * 3.0 * forgot}, {"rows": [], "ids": 0}))
            for sign in (-1, 0, 1)
        }
        # of normals three deviations apart 98.3, less what means of seven lose
        assert 96 < told[1]["mean"] < 99
        assert 96 < told[-1]["mean"] < 99
        assert told[0]["mean"] == pytest.approx(50, abs=3)
        assert 0 < told[0]["deviation"] < 6


def fitted(model: nn.Module, rows: TensorDataset) -> nn.Module:
    model = copy.deepcopy(model)
    fit(model, [Pass([DataPart(rows)])], TRAINING, RunOptions(seed=5))
    return model


class TestInput:
    BAD = {  # noqa: RUF012
        "two": ({"models": 2}, "models must be an even number, 6 at least"),
        "odd": ({"models": 7}, "models must be even"),
        "ids": ({"ids": torch.tensor([300])}, "ids must be"),
        "seed": ({"seed": -1}, "seed must be"),
        "num_workers": ({"num_workers": 0}, "num_workers must be"),
    }

    @pytest.mark.parametrize("case", BAD)
    def test_is_refused_before_any_work(self, train, tmp_path, case: str) -> None:
        options, message = self.BAD[case]
        with pytest.raises(InputError, match=message):
            train(**options)
        assert not list(tmp_path.iterdir())

    def test_shadows_of_another_request_or_method_are_refused(self, train, model, splits, ids) -> None:
        made = train()
        with pytest.raises(InputError, match="shadows must be of the ids that are audited"):
            audit(model, splits, ids[:50], shadows=made)
        with pytest.raises(InputError, match=r"set of shadows.*with rows"):
            train(ids=ids.flip(0))
        with pytest.raises(InputError, match=r"set of shadows.*with unlearning"):
            train(unlearning=replace(NOTHING, options={**NOTHING.options, "recipe": SHORT}))
