"""What a comparison says of its rows, by hand, and its page."""

import json
import math
import re

import pytest
from page_tools import Page

from amun_ext import InputError
from amun_ext.deletion.request import RETRAIN
from amun_ext.experiments import compare
from amun_ext.experiments.comparison import NO_BETTER, NOOP, NOTHING, TOO_MUCH, Comparison, RunResult, TableRow
from amun_ext.report import html
from amun_ext.unlearning.config import resolve_config


def render(of: Comparison) -> str:
    return html.render(of.document())


def row(ua: float, auc: float = 60.0, error: float = 2.0, ra: float = 100.0, ta: float = 90.0) -> RunResult:
    return RunResult(
        {"UA": ua, "forget error": 100 - ua, "RA": ra, "TA": ta, "FT AUC": auc, "FT SE": error, "seconds": 1.0}
    )


def comparison(*cells: RunResult, retrain: RunResult | None = None, noop: RunResult | None = None) -> Comparison:
    """One method, "ga", beside a no-op at UA 100, FT AUC 60 and retraining at UA 90, FT AUC 50, with 100 samples."""
    always = {
        RETRAIN: TableRow("Retrain", resolve_config("retrain"), {0: retrain or row(90.0, 50.0)}),
        NOOP: TableRow("no-op (original)", None, {0: noop or row(100.0)}),
    }
    lines = always | {"ga": TableRow("GA", resolve_config("ga"), dict(enumerate(cells)))}
    return Comparison({"with": lines}, {"forget": 100, "retain": 900, "test": 300}, len(cells), [1], {})


class TestRemarks:
    """By hand: the standard error of 100 samples is 1.7 at UA 97, 1.96 at UA 96."""

    @pytest.mark.parametrize(
        ("cells", "remarks"),
        [
            ([row(95.0, 55.0)], []),
            ([row(100.0, 55.0)], [NOTHING]),  # nearer in FT AUC, but UA is where it was
            ([row(97.0, 55.0)], [NOTHING]),
            ([row(96.0, 55.0)], []),
            ([row(95.0, 55.0), row(97.0, 55.0)], [NOTHING]),  # 96 ± 1 over seeds
            ([row(96.0, 55.0), row(96.0, 55.0)], []),
            ([row(50.0, 50.0)], [NO_BETTER]),
            ([row(80.0, 60.0)], [NO_BETTER]),  # as far on the other side: equal is no better
            ([row(90.0, 45.9)], [TOO_MUCH]),
            ([row(90.0, 46.1)], []),
            ([row(90.0, 45.0, error=3.0)], []),
            ([row(70.0, 30.0)], [NO_BETTER, TOO_MUCH]),
            ([row(95.0, 55.0), RunResult({}, "the loss is nan")], ["1 of 2 failed"]),
            ([RunResult({}, "the loss is nan")], ["1 of 1 failed"]),
        ],
    )
    def test_by_hand(self, cells, remarks) -> None:
        assert comparison(*cells).remarks("with", "ga") == remarks

    def test_no_remarks_about_what_is_compared_with(self) -> None:
        seen = comparison(row(95.0))
        assert seen.remarks("with", RETRAIN) == seen.remarks("with", NOOP) == []

    def test_a_retraining_that_failed_leaves_the_gap_out(self) -> None:
        seen = comparison(row(95.0, 55.0), retrain=RunResult({}, "the loss is nan"))
        assert math.isnan(seen.statistics("with", "ga")["gap"].mean)
        assert seen.remarks("with", "ga") == []
        assert seen.remarks("with", RETRAIN) == ["1 of 1 failed"]
        Page(render(seen))
        assert json.loads(json.dumps(seen.to_dict(), allow_nan=False))["tables"]["with"]["ga"]["gap"]["mean"] is None


class TestPage:
    def test_names_the_closest_that_does_something(self) -> None:
        assert "GA comes closest" in render(comparison(row(92.0, 52.0)))
        assert "comes closest" not in render(comparison(row(100.0, 52.0)))

    def test_points_far_away_do_not_spoil_the_pictures(self) -> None:
        near, far = (render(comparison(row(ua, 52.0, ta=ta))) for ua, ta in ((92.0, 88.0), (5.0, 5.0)))
        assert "cut" not in re.sub("are cut", "", near)
        assert ", cut" in far
        Page(far)

    def test_same_input_same_page(self) -> None:
        seen = comparison(row(92.0, 52.0), row(93.0, 51.0))
        assert render(seen) == render(seen)
        Page(render(seen))


def test_plans_refuse_what_is_no_row() -> None:
    with pytest.raises(InputError, match="methods must be some of"):
        compare.resolve_configs([], True)
    with pytest.raises(InputError, match="preset must be one of"):
        compare.resolve_configs(["ft"], True, preset="none")
    assert compare.resolve_configs(["ft", "ga"], False)["ft"] is None
    assert compare.resolve_configs(["amun:with-forget"], True)["amun:with-forget"].options["include_forget"] is True
