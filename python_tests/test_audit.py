"""The audit: measures on made-up scores with known answers, verdicts on known models, flags, and the command."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext import InputError, cli, data, models
from amun_ext.auditing import audit, train_references
from amun_ext.auditing.members import find_suspected_members, harm
from amun_ext.data import Splits
from amun_ext.metrics.measures import Observation, attack_auc, divergence, gap_of, share, tpr_at, tug_of_war
from amun_ext.report import html
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit

RESULTS = ("audit.html", "audit.json", "audit.md")
RECIPE = Recipe(epochs=12, lr=0.1, schedule="cosine", batch_size=32)


def logits_of(right: list[bool], classes: int = 3) -> tuple[Tensor, Tensor]:
    """Logits [N, K] of a model that is right where it is said, and labels."""
    labels = torch.arange(len(right)) % classes
    logits = torch.zeros(len(right), classes)
    logits[torch.arange(len(right)), (labels + ~torch.tensor(right)) % classes] = 2.0
    return logits, labels


def seen(
    forget: list[bool], retain: list[bool], test: list[bool], scores: dict[str, list[float]] | None = None
) -> Observation:
    made = {name: logits_of(right) for name, right in (("forget", forget), ("retain", retain), ("test", test))}
    told = scores or {name: logits[:, 0].tolist() for name, (logits, _) in made.items()}
    return Observation(
        logits={name: logits for name, (logits, _) in made.items()},
        labels={name: labels for name, (_, labels) in made.items()},
        attacks={"confidence": {name: np.array(values, dtype=float) for name, values in told.items()}},
    )


class TestMeasures:
    def test_wilsons_interval(self) -> None:
        """Against its definition: the ends are the shares from which the count is 1.96 standard errors away."""
        for count, total in ((0, 10), (3, 10), (10, 10), (81, 263)):
            made = share(count, total)
            for end in {made.low, made.high} - {0.0, 100.0}:
                p = end / 100
                assert abs(count / total - p) == pytest.approx(1.96 * math.sqrt(p * (1 - p) / total))
            assert made.low <= made.value <= made.high
        published = {(81, 263): (25.53, 36.62), (15, 148): (6.24, 16.05)}  # Newcombe 1998, table I
        for (count, total), ends in published.items():
            assert (share(count, total).low, share(count, total).high) == pytest.approx(ends, abs=0.01)

    def test_areas_compare_the_sets_that_they_are_named_after(self) -> None:
        scores = {"forget": np.array([1.0, 3.0]), "retain": np.array([4.0, 5.0]), "test": np.array([0.0, 2.0])}
        assert attack_auc(scores, "FT").value == 75
        assert attack_auc(scores, "FR").value == 100
        assert attack_auc(scores, "RT").value == 100

    def test_low_false_positive_rates(self) -> None:
        scores = {"forget": np.array([100.0, 99.5, 98.5, 97.5]), "test": np.arange(100.0)}
        assert tpr_at(scores, 1.0).value == 75
        assert tpr_at(scores, 2.0).value == 100
        assert math.isnan(tpr_at(scores, 0.1).value)

    def test_divergences(self) -> None:
        sure, unsure = seen([True], [True], [True]), seen([False], [True], [True])
        p = np.exp([2.0, 0.0, 0.0]) / np.exp([2.0, 0.0, 0.0]).sum()
        q = np.roll(p, 1)
        assert divergence(sure, unsure, "forget").value == pytest.approx((p * np.log(p / q)).sum())
        middle = (p + q) / 2
        by_hand = ((p * np.log(p / middle)).sum() + (q * np.log(q / middle)).sum()) / 2
        assert divergence(sure, unsure, "forget", jensen_shannon=True).value == pytest.approx(by_hand)
        assert divergence(sure, sure, "forget").value == 0
        assert divergence(sure, unsure, "retain", jensen_shannon=True).value == pytest.approx(0, abs=1e-12)

    def test_gap_and_tug_of_war(self) -> None:
        first = seen([True, False], [True] * 4, [True, True], {"forget": [0, 2], "retain": [5] * 4, "test": [1, 1]})
        other = seen([False, False], [True] * 4, [True, False], {"forget": [2, 2], "retain": [5] * 4, "test": [1, 1]})
        assert gap_of(first, other).value == (50 + 0 + 50 + 50) / 4
        assert tug_of_war(first, other).value == 0.25
        assert (gap_of(first, first).value, tug_of_war(first, first).value) == (0, 1)


class TestSamples:
    def test_suspected_members_score_above_99_percent_of_the_test_set(self) -> None:
        scores = {"forget": [98.0, 98.5, 200.0, -1.0], "retain": [0.0], "test": list(range(100))}
        made = find_suspected_members(
            seen([True] * 4, [True], [True] * 100, scores), torch.tensor([7, 8, 9, 10]), "confidence"
        )
        assert [(each.id, each.above) for each in made.samples] == [(9, 100), (8, 99)]
        assert (made.threshold, made.expected_by_chance) == (98.0, 4 * 2 / 101)

    def test_suspected_members_agree_with_the_true_positive_rate(self) -> None:
        forget, test = torch.randn(80).tolist(), torch.randn(450).tolist()
        model = seen([True] * 80, [True], [True] * 450, {"forget": forget, "retain": [0.0], "test": test})
        found = find_suspected_members(model, torch.arange(80), "confidence")
        assert 100 * len(found.samples) / 80 == pytest.approx(tpr_at(model.scores, 1.0).value)

    def test_samples_lost_and_gained(self) -> None:
        before, after = seen([True], [True, True, False], [False]), seen([True], [False, True, True], [False])
        assert harm(after, before) == {
            "retain_samples_lost": 1,
            "retain_samples_gained": 1,
            "test_samples_lost": 0,
            "test_samples_gained": 0,
        }
        assert harm(after, None) == {}


@pytest.fixture(scope="module")
def splits() -> Splits:
    """Digits, a fifth of whose training labels are random: there is something to memorise."""
    digits = data.load("digits")
    images, labels = digits.train[:600]
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randperm(600, generator=generator)[:120]
    labels = labels.clone()
    labels[noisy] = torch.randint(0, 10, (120,), generator=generator)
    return Splits(TensorDataset(images, labels), digits.test, digits.classes)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randperm(600, generator=torch.Generator().manual_seed(2))[:150]


def trained(rows: TensorDataset, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models.build("small-cnn", num_classes=10, in_channels=1, width=8)
    fit(model, [Pass([DataPart(rows)])], RECIPE, RunOptions(seed=seed))
    return model


@pytest.fixture(scope="module")
def original(splits) -> nn.Module:
    return trained(splits.train, 0)


@pytest.fixture(scope="module")
def retrained(splits, ids) -> nn.Module:
    kept = torch.ones(600, dtype=torch.bool)
    kept[ids] = False
    return trained(TensorDataset(*splits.train[kept.nonzero()[:, 0]]), 1)


@pytest.fixture(scope="module")
def references(splits, original, tmp_path_factory):
    return train_references(original, splits, RECIPE, out=tmp_path_factory.mktemp("references"), models=8)


class TestAudit:
    def test_a_model_that_has_forgotten_nothing(self, original, retrained, references, splits, ids) -> None:
        found = audit(
            original, splits, ids, original=original, retrained=retrained, references=references, random_forget_set=True
        )
        assert found.verdict.answer == "not forgotten"
        assert any(flag.startswith("no-op") for flag in found.flags)
        assert found.rows["audited"]["FR AUC"].low < 50 < found.rows["audited"]["FR AUC"].high
        assert found.rows["audited"]["FT AUC"].value == pytest.approx(found.rows["audited"]["RT AUC"].value, abs=6)
        assert len(found.members.samples) > found.members.expected_by_chance
        assert found.rows["original"]["gap"].value == found.rows["audited"]["gap"].value > 5

    def test_a_retrained_model(self, original, retrained, references, splits, ids) -> None:
        """The sanity triple of references that are balanced: FT AUC is 50, and FR AUC that of retain against test."""
        found = audit(
            retrained,
            splits,
            ids,
            original=original,
            references=references,
            random_forget_set=True,
            equivalence_margin=12.0,
        )
        row = found.rows["audited"]
        assert row["FT AUC"].low - 3 < 50 < row["FT AUC"].high + 3
        assert row["FR AUC"].value == pytest.approx(row["RT AUC"].value, abs=6)
        assert found.verdict.answer == "forgotten"
        assert not found.flags
        assert "gap" not in row

    def test_a_model_does_not_differ_from_itself(self, original, retrained, references, splits, ids) -> None:
        """And without the model before, or an attack that finds it, nothing shows that this says anything."""
        found = audit(retrained, splits, ids, retrained=retrained)
        assert (found.verdict.answer, found.verdict.difference) == ("cannot tell", 0)
        assert "without the original model" in found.verdict.reason
        with_original = {"original": original, "retrained": retrained, "references": references}
        assert audit(retrained, splits, ids, **with_original).verdict.answer == "forgotten"
        assert found.rows["audited"]["gap"].value == 0
        assert list(found.attacks) == ["confidence"]

    def test_several_retrained_models_are_averaged(self, original, retrained, splits, ids) -> None:
        """The original stands in for a second retraining that came out very differently: the verdict is less sure."""
        found = audit(retrained, splits, ids, retrained=[retrained, original], seconds={"retrained": 4.0, "audited": 2})
        one, other = (audit(each, splits, ids).rows["audited"]["FT AUC"].value for each in (retrained, original))
        row = found.rows["retrained"]["FT AUC"]
        assert row.value == pytest.approx((one + other) / 2)
        assert row.low < min(one, other) < max(one, other) < row.high
        assert found.verdict.difference == pytest.approx(one - (one + other) / 2)
        assert found.verdict.interval[1] - found.verdict.interval[0] > 1.64 * abs(one - other)
        assert "2 retrained models'" in found.verdict.reason
        assert found.rows["audited"]["speed-up"].value == 2.0
        gaps = [
            audit(retrained, splits, ids, retrained=each).rows["audited"]["gap"].value for each in (retrained, original)
        ]
        assert found.rows["audited"]["gap"].value == pytest.approx(sum(gaps) / 2)

    @pytest.mark.parametrize("case", ["no baseline", "not stated to be a random", "class counts"])
    def test_without_a_valid_baseline_it_cannot_tell(self, original, references, splits, ids, case: str) -> None:
        of_one = (splits.train.tensors[1] == 3).nonzero()[:, 0]
        options = {
            "no baseline": {"random_forget_set": True},
            "not stated to be a random": {"references": references},
            "class counts": {"ids": of_one, "references": references, "random_forget_set": True},
        }[case]
        found = audit(**{"model": original, "splits": splits, "ids": ids} | options)
        assert found.verdict.answer == "cannot tell"
        assert case in found.verdict.reason

    def test_few_ids_cannot_tell_and_name_the_required_number(self, retrained, original, splits, ids) -> None:
        found = audit(retrained, splits, ids[:6], original=original, retrained=original)
        assert found.verdict.answer == "cannot tell"
        could = found.verdict.required_ids
        assert could > 6
        told = "too few samples to decide" if could > 600 else f"With {could:,.0f} ids instead of 6"
        assert told in " ".join(found.to_text().split())

    @pytest.mark.same_inputs
    def test_a_broken_model_is_flagged(self, original, splits, ids) -> None:
        broken = models.build("small-cnn", num_classes=10, in_channels=1, width=8)
        found = audit(broken, splits, ids, original=original)
        assert any(flag.startswith("broken") for flag in found.flags)

    def test_files(self, original, retrained, references, splits, ids, tmp_path) -> None:
        found = audit(original, splits, ids, retrained=retrained, references=references, facts={"method": "none"})
        found.write(tmp_path)
        told = json.loads((tmp_path / "audit.json").read_text())
        assert told["verdict"]["answer"] == "not forgotten"
        assert told["rows"]["audited"]["UA"]["value"] == found.rows["audited"]["UA"].value
        area = told["rows"]["audited"]["FT AUC"]
        assert area["bootstrap"][0] < area["value"] < area["bootstrap"][1]
        assert area["bootstrap"] == pytest.approx([area["low"], area["high"]], abs=1.5)
        assert set(told["attacks"]) == {"RMIA", "RMIA, offline", "LiRA", "RMIA, as published", "confidence"}
        assert told["facts"] == {"method": "none"}
        assert {each["id"] for each in told["members"]["samples"]} <= set(ids.tolist())
        page = (tmp_path / "audit.md").read_text()
        assert page.startswith("## Audit: not forgotten\n")
        for name in told["columns"]:
            assert f"| {name} |" in page
        page = (tmp_path / "audit.html").read_text()
        assert f'<th scope="row">{told["members"]["samples"][0]["id"]}</th>' in page
        assert "data:image" not in page  # nothing of what was to be deleted
        found.write(tmp_path, with_images=True)
        shown = (tmp_path / "audit.html").read_text()
        assert shown.count('src="data:image/png') == len(found.pictures) == min(12, len(found.members.samples)) > 0

    def test_models_and_random_state_are_unchanged(self, original, splits, ids) -> None:
        before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
        original.train()
        state = torch.get_rng_state()
        audit(original, splits, ids)
        assert original.training
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(tensor, before[name]) for name, tensor in original.state_dict().items())

    def test_previously_forgotten_samples_are_in_no_set(self, original, splits, ids) -> None:
        found = audit(original, splits, ids[:50], previously_forgotten=ids[50:].tolist())
        assert found.sizes == {"forget": 50, "retain": 450, "test": len(splits.test)}


def test_tabular_data_have_bounds_of_their_own() -> None:
    """Beyond a box as well; and a page with images has none of what is no image."""
    inputs = 5 * torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    inputs[0] = 100.0  # so that one forget sample looks like a member
    parts = [TensorDataset(each, (each[:, 0] > 0).long()) for each in (inputs[:40], inputs[40:])]
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]]))
    with pytest.raises(InputError, match="train images must be inside bounds"):
        Splits(*parts, ("low", "high"))
    found = audit(model, Splits(*parts, ("low", "high"), bounds=None), torch.arange(12), original=model)
    assert found.members.samples[0].id == 0
    assert found.rows["audited"]["UA"].value == 100.0
    assert "<img" not in html.render(found.document(), with_images=True)


class TestInput:
    def test_is_refused_before_any_work(self, splits, ids, references) -> None:
        def asked(*_: object) -> None:
            raise AssertionError("a model was asked")

        model = models.build("small-cnn", num_classes=10, in_channels=1, width=8)
        model.forward = asked
        less = Splits(TensorDataset(*splits.train[:-1]), splits.test, splits.classes)
        foreign = "must be of the audited model's architecture"
        for options, message in [
            ({"ids": torch.tensor([1, 1])}, "ids must be different"),
            ({"ids": torch.tensor([], dtype=torch.int64)}, "ids must be a tensor of row numbers"),
            ({"ids": [*range(999)]}, r"ids must be a tensor of .* got \[0, 1, 2, 3, 4, 5, \.\.\.\]"),
            ({"previously_forgotten": [int(ids[0])]}, "ids must be different"),
            ({"ids": torch.tensor([600])}, "ids must be"),
            ({"equivalence_margin": 0.0}, "margin must be"),
            ({"original": nn.Linear(2, 2)}, f"original {foreign}"),
            ({"retrained": nn.Linear(2, 2)}, f"retrained {foreign}"),
            ({"retrained": [model, nn.Linear(2, 2)]}, f"retrained {foreign}"),
            ({"retrained": ["model"]}, "retrained must be an nn.Module, got str"),
            ({"seconds": {"other": 1.0}}, "seconds must be"),
            ({"splits": less, "references": references, "ids": ids[ids < 599]}, "references must be trained on these"),
            ({"ids": torch.arange(600)}, "ids must be fewer than all ids"),
        ]:
            with pytest.raises(InputError, match=message):
                audit(**{"model": model, "splits": splits, "ids": ids} | options)


class TestCommand:
    def test_forget_references_shadows_audit(self, digits_checkpoint, tmp_path, capsys, refused) -> None:
        def command(*arguments: object) -> list[str]:
            return [*map(str, arguments), "--data", "digits"]

        def amun(*arguments: object) -> int:
            return cli.main(command(*arguments))

        model = digits_checkpoint
        short = ("--fraction", 0.1, "--epochs", 1)
        assert amun("forget", "--model", model, *short, "--out", tmp_path / "f") == 0
        assert amun("references", "--model", model, "--num-models", 2, "--out", tmp_path / "r") == 0
        after = ("--model", tmp_path / "f/model.safetensors", "--original", model)
        shadows = ("--num-models", 6, "--epochs", 1, "--out", tmp_path / "s")
        assert amun("shadows", "--model", tmp_path / "f/model.safetensors", *shadows) == 0
        assert "6 shadow models: each is trained on 1,197 samples for 3 epochs and" in capsys.readouterr().out
        out = tmp_path / "a"
        kept = ("--references", tmp_path / "r", "--shadows", tmp_path / "s")
        assert amun("audit", *after, "--retrain", 2, *kept, "--out", out) == 0
        told = json.loads((out / "audit.json").read_text())
        assert set(told["rows"]) == {"original", "audited", "retrained"}
        assert len(told["facts"]["ids"]) == told["sizes"]["forget"] == 120
        assert (told["facts"]["references"], told["facts"]["shadows"], told["facts"]["retrained_models"]) == (2, 6, 2)
        assert told["rows"]["audited"]["speed-up"]["value"] > 0
        assert "U-LiRA" in told["attacks"]
        files = {path.name for path in out.iterdir()}
        assert files == {*RESULTS, "retrained-1.safetensors", "retrained.safetensors"}
        again = ("--retrained-model", out / "retrained.safetensors", out / "retrained-1.safetensors")
        assert amun("audit", *after, *again, *kept, "--out", tmp_path / "b") == 0
        assert json.loads((tmp_path / "b/audit.json").read_text())["rows"] == told["rows"]
        runs = ("--other-runs", tmp_path / "f/model.safetensors")
        assert amun("audit", *after, *again, *runs, "--out", tmp_path / "d") == 0
        assert json.loads((tmp_path / "d/audit.json").read_text())["rows"]["audited"]["KLoM, forget"]["value"] >= 0
        assert set(told["verdicts"]) == {"RMIA", "U-LiRA"}
        assert models.read_metadata(out / "retrained.safetensors")["unlearning"].startswith('{"method": "retrain"')

        own = out / "retraining-mine.safetensors"
        own.touch()
        some = ("--ids", "1-30", "--out", out, "--overwrite")
        answer = {"not forgotten": 10, "over-forgotten": 11, "cannot tell": 12}
        status = amun("audit", *after, *some, "--fail-unless", "forgotten")
        assert status == answer[json.loads((out / "audit.json").read_text())["verdict"]["answer"]]
        assert own.exists()
        assert " of 30 ids are not among those" in (out / "audit.md").read_text()
        of_forgotten = ("shadows", "--model", tmp_path / "f/model.safetensors", "--method", "ft", "--epochs", 1)
        for message, arguments in {
            "--retrained-model must be trained without": ("audit", *after, "--retrained-model", model),
            "margin must be": ("audit", *after, "--retrain", "--equivalence-margin", 60),
            "shadows must be of the ids": ("audit", *after, *kept, "--retrain", *some[:2]),
            "would overwrite the model": ("audit", "--model", out / "retrained.safetensors", "--retrain"),
            "the flags must be of the method that made the model": of_forgotten,
        }.items():
            place = out if "overwrite" in message else tmp_path / "c"
            refused(command(*arguments, "--out", place), message)
        assert not (tmp_path / "c").exists()

    def test_bad_input_leaves_no_file(self, digits_checkpoint, tmp_path, refused) -> None:
        for flags, message in [
            ("", "--ids must be given"),
            ("--ids 3 --references nowhere", "a folder that amun references has written"),
            ("--ids 3 --equivalence-margin 0", "margin must be"),
            ("--ids 9999", "ids must be"),
        ]:
            where = f"--data digits --model {digits_checkpoint} --out {tmp_path / 'a'}"
            refused(["audit", *f"{where} {flags}".split()], message)
        assert not (tmp_path / "a").exists()
