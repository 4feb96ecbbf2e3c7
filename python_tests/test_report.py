"""evaluate on models whose every number can be worked out by hand, and what it writes."""

import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from page_tools import Page
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext import InputError
from amun_ext.evaluation import evaluate
from amun_ext.report import html


def render(report, with_images=False):
    return html.render(report.document(), with_images)


HOSTILE = "<script src='http://example.invalid/x.js'></script>&\""


class Scorer(nn.Module):
    """Two classes; the logit of class 1 is the image's mean above `threshold`, times 10."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, images):
        logit = 10 * (images.flatten(1).mean(1) - self.threshold)
        return torch.stack([-logit, logit], dim=1)


def images_of(*means):
    return torch.tensor(means).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


def data(*pairs):
    return TensorDataset(images_of(*(mean for mean, _ in pairs)), torch.tensor([label for _, label in pairs]))


@pytest.fixture
def arguments():
    forget = data((0.9, 1), (0.8, 1), (0.6, 1), (0.3, 0))
    examples = SimpleNamespace(
        images=images_of(0.45, 0.4, 0.45, 0.3),
        labels=torch.tensor([0, 0, 0, 1]),
        distance=torch.tensor([0.9, 0.8, 0.3, math.inf]),
        eps=torch.tensor([1.0, 1.0, 0.5, math.inf]),
        grad_evals=torch.tensor([5, 5, 3, 40], dtype=torch.int32),
        found=torch.tensor([True, True, True, False]),
    )
    return {
        "models": {"no-op": Scorer(0.5), "amun": Scorer(0.7), "retrain": Scorer(0.85)},
        "forget": forget,
        "retain": data((0.9, 1), (0.1, 0)),
        "test": data((0.9, 1), (0.75, 1), (0.15, 0), (0.6, 0)),
        "seconds": {"amun": 2.0, "retrain": 10.0},
        "adversarial": examples,
        "classes": ["dark", "light"],
        "facts": {"seed": 3, "nested": {"rate": 0.5, "never": math.inf}, "on": [torch.device("cpu"), None]},
    }


@pytest.fixture
def report(arguments):
    return evaluate(**arguments)


class TestRows:
    def test_accuracies_by_hand(self, report):
        cells = {name: [row[key] for key in ("UA", "forget error", "RA", "TA")] for name, row in report.rows.items()}
        assert cells == {"no-op": [100, 0, 100, 75], "amun": [75, 25, 100, 100], "retrain": [50, 50, 100, 75]}

    def test_ft_auc_by_hand(self, report):
        assert report.scores["no-op"]["forget"] == pytest.approx([8, 6, 2, 4], abs=1e-4)
        assert report.scores["no-op"]["test"] == pytest.approx([8, 5, 7, -2], abs=1e-4)
        assert report.rows["no-op"]["FT AUC"] == 100 * (3.5 + 2 + 1 + 1) / 16

    def test_gap_from_the_cells(self, report):
        amun, retrain = report.rows["amun"], report.rows["retrain"]
        assert amun["gap"] == pytest.approx((25 + 0 + 25 + abs(amun["FT AUC"] - retrain["FT AUC"])) / 4)
        assert retrain["gap"] == 0

    def test_time_and_speed_up(self, arguments, report):
        assert math.isnan(report.rows["no-op"]["seconds"])
        assert math.isnan(report.rows["no-op"]["speed-up"])
        assert report.rows["amun"]["speed-up"] == 5
        assert report.rows["retrain"]["speed-up"] == 1
        at_once = evaluate(**arguments | {"seconds": {"no-op": 0.0, "retrain": 1.0}})
        assert math.isnan(at_once.rows["no-op"]["speed-up"])

    def test_no_comparison_without_a_baseline(self, arguments):
        report = evaluate(**arguments | {"baseline": None, "seconds": None})
        assert "gap" not in report.rows["amun"]
        assert [column.name for column in report.columns][-1] == "FT AUC"  # of four samples no standard error holds
        assert "retraining gives" not in render(report)

    def test_highlight_is_the_first_that_is_neither_before_nor_baseline(self, arguments):
        assert evaluate(**arguments).highlight == "amun"
        assert evaluate(**arguments | {"highlight": "retrain"}).highlight == "retrain"
        assert evaluate(**arguments | {"models": {"retrain": Scorer(0.5)}, "seconds": None}).highlight == "retrain"


class TestSearch:
    def test_summary_counts_only_what_was_found(self, report):
        assert report.search == pytest.approx(
            {"samples": 4, "found": 3, "median_distance": 0.8, "median_eps": 1.0, "grad_evals": 53}
        )

    def test_examples_go_from_the_closest_to_the_farthest(self, report):
        assert [(example.true, example.wrong, round(example.distance, 3)) for example in report.examples] == [
            ("light", "dark", 0.3),
            ("light", "dark", 0.8),
            ("light", "dark", 0.9),
        ]
        assert float(report.examples[0].image.max()) == pytest.approx(0.6)

    def test_none_found(self, arguments):
        arguments["adversarial"].found[:] = False
        report = evaluate(**arguments)
        assert not report.examples
        assert report.to_dict()["search"]["median_distance"] is None
        assert "their adversarial examples" not in render(report, with_images=True)

    def test_the_image_itself_is_an_example_at_distance_zero(self, arguments):
        examples = arguments["adversarial"]
        examples.images, examples.distance[:] = arguments["forget"].tensors[0], 0.0
        assert "enlarged 1 times" in render(evaluate(**arguments), with_images=True)


NOTHING = TensorDataset(torch.rand(0, 1, 2, 2), torch.zeros(0, dtype=torch.long))


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"models": {}}, "^models must be"),
            ({"models": Scorer(0.0)}, "^models must be a mapping of row names to models, got Scorer"),
            ({"models": {"no-op": Scorer(0.0), "amun": None}}, r"^models\['amun'\] must be an nn.Module, got NoneType"),
            ({"baseline": "retrained"}, "^baseline must be among the rows .*'retrained'"),
            ({"highlight": "x"}, "^highlight must be among"),
            ({"seconds": {"x": 1.0}}, "^seconds must be among"),
            ({"seconds": {"amun": -1.0}}, r"^seconds\['amun'\] must be"),
            ({"seconds": {"amun": math.nan}}, r"^seconds\['amun'\] must be"),
            ({"forget": NOTHING}, "^forget must be non-empty"),
            ({"retain": NOTHING}, "^retain must be non-empty"),
            ({"test": NOTHING}, "^test must be non-empty"),
            ({"test": data((0.1, 2))}, "^test labels must be in"),
            ({"test": data((1.5, 1))}, "^test must be inside"),
            ({"test": data((math.nan, 1))}, "^test must be free of NaN"),
            ({"classes": ["one"]}, "^forget labels must be in"),
            ({"classes": ["a", "b", "c"]}, "^classes must be 2 names"),
            ({"models": {"retrain": nn.Flatten(0)}}, r"^models\['retrain'\] must be"),
            ({"models": {"retrain": Scorer(math.nan)}}, r"^models\['retrain'\] must be .* 8 of 8 not finite"),
        ],
    )
    def test_names_the_argument(self, arguments, change, message):
        with pytest.raises(InputError, match=message):
            evaluate(**arguments | {"classes": (), "seconds": None, "adversarial": None} | change)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("images", torch.rand(3, 1, 2, 2)),
            ("images", images_of(2.0, 0.1, 0.1, 0.1)),
            ("labels", torch.tensor([0, 0, 2, 0])),
            ("labels", torch.tensor([0, 0])),
            ("distance", torch.tensor([math.nan, 1.0, 1.0, 1.0])),
            ("found", torch.tensor([True])),
        ],
    )
    def test_names_the_field_of_the_adversarial_examples(self, arguments, field, value):
        setattr(arguments["adversarial"], field, value)
        with pytest.raises(InputError, match=rf"^adversarial\.{field} must be"):
            evaluate(**arguments)


class TestJson:
    def test_round_trips_without_nan(self, report, tmp_path):
        report.to_json(tmp_path / "report.json")

        def refuse(constant):
            raise AssertionError(constant)

        written = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
        assert written == report.to_dict()
        assert written["rows"]["no-op"]["seconds"] is None
        assert written["rows"]["amun"]["UA"] == 75
        assert written["facts"] == {"seed": 3, "nested": {"rate": 0.5, "never": None}, "on": ["cpu", None]}
        assert set(written["columns"]) == set(written["rows"]["amun"]) - {"FT SE"}  # unknown in all rows

    def test_one_sample_has_no_standard_error(self, arguments):
        report = evaluate(**arguments | {"forget": data((0.9, 1)), "adversarial": None})
        assert report.to_dict()["rows"]["amun"]["FT SE"] is None


class TestText:
    def test_is_an_aligned_table_with_a_legend(self, report):
        lines = report.to_text().splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("model "))
        heading, rule, *rows = lines[start : start + 5]
        assert " ".join(heading.split()) == "model UA forget error RA TA FT AUC seconds gap speed-up"
        assert set(rule) == {"-"}
        assert len({len(line) for line in (heading, rule, *rows)}) == 1
        assert rows[0].split()[:5] == ["no-op", "100.0", "0.0", "100.0", "75.0"]
        assert rows[0].split()[-3::2] == ["-", "-"]
        for column in report.columns:
            assert sum(line.startswith(f"{column.name}  ") for line in lines) == 1
        assert "closer to retraining" in report.to_text()

    def test_leaves_out_empty_columns(self, arguments):
        assert "speed-up" not in evaluate(**arguments | {"seconds": None}).to_text()


class TestHtml:
    @pytest.mark.parametrize("with_images", [False, True])
    def test_is_well_formed_and_self_contained(self, report, tmp_path, with_images):
        report.to_html(tmp_path / "report.html", with_images=with_images)
        source = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert source == render(report, with_images)
        page = Page(source)
        links = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href", "xlink:href", "srcset")]
        assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
        assert "@import" not in source
        assert not re.search(r"url\((?!#)", source)
        ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id", "").startswith(("p", "m"))]
        clips = [i for i in ids if re.fullmatch(r"[pm][0-9a-f]{10}", i)]
        assert len(clips) == len(set(clips))
        # a page that outlives a deletion must not hold what was deleted, nor its near copies, unless asked to
        for sign in ("data:image", "their adversarial examples"):
            assert (sign in source) == with_images
        assert page.count("img") == 9 * with_images

    def test_begins_with_a_summary(self, report):
        words = " ".join("".join(Page(render(report)).words).replace("\u00a0", " ").split())
        assert "4 forgotten images fell from 100.0 % to 75.0 %; retraining gives 50.0 %" in words
        assert "4 test images rose from 75.0 % to 100.0 %" in words
        assert "It took 2.0 seconds, retraining 10.0." in words
        assert "3 of 4 forgotten images, at a median L2 distance of 0.80" in words
        assert "empirical measurement" in words

    def test_shows_three_histograms(self, report):
        page = Page(render(report))
        assert [tag for tag, attributes in page.tags if attributes.get("role") == "img"] == ["figure"] * 3
        assert ("tr", {"class": "baseline"}) in page.tags
        assert "currentColor" in render(report)

    def test_escapes_every_name_it_is_given(self, arguments):
        models = {HOSTILE + "before": Scorer(0.5), HOSTILE: Scorer(0.6), "retrain": Scorer(0.7)}
        hostile = {"models": models, "seconds": None, "classes": [HOSTILE, "b"], "facts": {HOSTILE: [HOSTILE]}}
        source = render(evaluate(**arguments | hostile), with_images=True)
        page = Page(source)
        assert HOSTILE not in source
        assert "".join(page.words).count("<script src=") >= 6

    @pytest.mark.parametrize("channels", [1, 2, 3])
    def test_draws_images_of_any_channels(self, arguments, channels):
        sets = {
            name: TensorDataset(arguments[name].tensors[0].expand(-1, channels, -1, -1), arguments[name].tensors[1])
            for name in ("forget", "retain", "test")
        }
        arguments["adversarial"].images = arguments["adversarial"].images.expand(-1, channels, -1, -1)
        assert render(evaluate(**arguments | sets), with_images=True).count("data:image/png") == 9

    def test_draws_scores_that_are_all_the_same(self, report):
        constant = {row: {name: 0 * values for name, values in sets.items()} for row, sets in report.scores.items()}
        assert render(replace(report, scores=constant)).count("<figure role=") == 3


def test_tabular_data_have_bounds_of_their_own(arguments):
    """And the error for another range, or without a retrained model, says what to do."""
    shifted = {
        name: TensorDataset(arguments[name].tensors[0] - 3, arguments[name].tensors[1])
        for name in ("forget", "retain", "test")
    }
    tabular = arguments | shifted | {"adversarial": None}
    with pytest.raises(InputError, match=r"inside bounds \(0\.0, 1\.0\)"):
        evaluate(**tabular)
    for bounds in (None, (-math.inf, math.inf), [-3, -2]):
        assert evaluate(**tabular, bounds=bounds).sizes["forget"] == len(shifted["forget"])
    for bounds in ((1, 0), "01", (0.0, math.nan), 3):
        with pytest.raises(InputError, match=r"bounds must be \(low, high\) with low < high, or None"):
            evaluate(**tabular, bounds=bounds)
    with pytest.raises(InputError, match="or None where there is no retrained model"):
        evaluate(**arguments | {"baseline": "anew"})
    for argument in ("baseline", "highlight"):
        with pytest.raises(InputError, match=f"{argument} must be among the rows") as refused:
            evaluate(**arguments | {argument: torch.nn.Sequential(torch.nn.Linear(2, 2))})
        assert "\n" not in str(refused.value)


def test_digests_are_cut_on_a_page_and_in_it_as_a_whole(arguments):
    digest = "7ce012b2" * 8
    page = Page(render(evaluate(**arguments | {"facts": {"request": f"{digest} with images", "ids": [1, 2]}})))
    cut = [attributes for tag, attributes in page.tags if attributes.get("class") == "digest"]
    assert [each["title"] for each in cut] == [digest]
    assert digest in page.words
