"""The page of a deletion request for the file: what was done, what was measured, and what that does not show."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from amun_ext.deletion import ledger
from amun_ext.deletion.drift import RETRAIN
from amun_ext.deletion.request import ORIGINAL
from amun_ext.deletion.request import RETRAIN as RETRAINED
from amun_ext.report.parts import Answer, Document, Facts, Heading, Items, Paragraph
from amun_ext.report.tables import Cell, Column, Row, Table, interval, spread, word
from amun_ext.validation import is_number, printable

PAGE = "record.html"
FACTS = (
    "date",
    "parent",
    "child",
    "seed",
    "versions",
    "devices",
    "threads",
    "deterministic_algorithms",
    "seconds",
    "stages",
)
MEASURES = {
    "UA": "forgotten samples correct, %",
    "RA": "retained samples correct, %",
    "TA": "test samples correct, %",
    "FT AUC": "attack on the forgotten samples (FT AUC), %",
}
LIMITS = (
    "It shows how this model answers a few known attacks. A stronger attack may find more: no measurement proves that "
    "nothing of a sample is left in the weights.",
    "It says nothing about copies of the samples elsewhere, older models and backups. The command amun purge lists the "
    "files of amun that contain traces.",
    "It shows who wrote it only if the ledger is signed. Whoever can write all files of the folder can forge the rest.",
    "It is a measurement for a person who decides, and does not decide whether the law is satisfied.",
)
FAILED = ("not forgotten", "over-forgotten")


def document(
    record: Mapping[str, Any], found: Sequence[ledger.Entry], audit: Mapping[str, Any], signed: bool = False
) -> Document:
    """record: of record.json, all that is shown of it may be missing. found: the lines of the ledger. audit: of
    audit.json, empty without an audit. signed: the signatures of all lines were verified."""
    last = [entry for entry in found if entry[ledger.CHILD] == found[-1][ledger.CHILD]]
    before = len(found) - len(last)
    count, without = (sum(_whole(entry.get(name)) for entry in last) for name in ("samples", "samples_without_example"))
    method = _text(as_object(found[-1].get("unlearning")).get("method"))
    received = [_text(entry["received"]) for entry in last if "received" in entry]
    date, plural = _text(found[-1].get("date")), "s" * (len(last) > 1)
    done = [
        f"On {date} a model was changed to forget {count} training samples by the method {method}.",
        f"This answers {len(last)} request{plural}; {before or 'none'} came before."
        + (f" Received on {', '.join(received)}." if received else ""),
        f"{without} samples of the request could not be forgotten: no adversarial example was found.",
        f"The ledger of the model is valid: no line was changed, moved or removed. "
        f"{'All lines are signed by the owner of the given key.' if signed else 'No signature was checked.'}",
    ]
    answer, reason, tone = _recommendation(found[-1], audit)
    return Document(
        "Record of a deletion request",
        [
            Answer(answer, reason, tone),
            Heading("What was done"),
            Items([each for each in done if not each.startswith("0 ")]),
            Heading("What was measured"),
            _measured(as_object(found[-1].get("results"))),
            Paragraph(
                "The attacker tells forgotten from test samples by confidence. 50 % is guessing; ±: standard error.",
                soft=True,
            ),
            *_audited(audit),
            Heading("What this does not show"),
            Items(LIMITS),
            Facts({name: record[name] for name in FACTS if name in record}),
        ],
    )


def _recommendation(entry: ledger.Entry, audit: Mapping[str, Any]) -> tuple[str, str, str]:
    """The answer, its reason, and the tone."""
    said = entry.get("remarks")
    remarks = [_text(each) for each in (said if isinstance(said, list) else []) if RETRAIN in str(each)]
    verdict = as_object(audit.get("verdict"))
    requests = as_object(as_object(audit.get("facts")).get("requests"))
    bad = [f"request {_text(name)} is {_text(each)}" for name, each in requests.items() if each in FAILED]
    if verdict.get("answer") in FAILED:
        bad.insert(0, f"the audit says {_text(verdict['answer'])}, because {_text(verdict.get('reason'))}")
    if bad or remarks:
        return "Retraining is recommended", _sentence("; ".join([*bad, *remarks])), "bad"
    if verdict.get("answer") == "forgotten":
        return (
            "No further step is recommended",
            _sentence(f"the audit says forgotten: {_text(verdict.get('reason'))}"),
            "good",
        )
    reason = f"the audit cannot tell: {_text(verdict.get('reason'))}" if audit else "no audit was given"
    return "It is not known whether the samples are forgotten", _sentence(reason), "unsure"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def _measured(results: Mapping[str, Any]) -> Table:
    """A row per measure, a column per model: before, after, and retrained from scratch where there is one."""
    ordered = sorted(results, key=lambda name: (name != ORIGINAL, name == RETRAINED))
    names = {name: {ORIGINAL: "before", RETRAINED: "retrained"}.get(name, "after") for name in ordered}
    rows = [
        Row(told, [_cell(as_object(results[name]), measure) for name in names]) for measure, told in MEASURES.items()
    ]
    return Table("measures", "measure", [Column(shown) for shown in names.values()], rows)


def _cell(row: Mapping[str, Any], measure: str) -> Cell:
    error = _number(row.get("FT SE")) if measure == "FT AUC" else math.nan
    return spread(_number(row.get(measure)), error)


def _audited(audit: Mapping[str, Any]) -> list[Table | Paragraph]:
    """FT AUC of the audit's models with 95 % intervals, and its verdict on each request."""
    models = {name: as_object(as_object(row).get("FT AUC")) for name, row in as_object(audit.get("rows")).items()}
    rows = [
        Row(_text(name), [interval(_number(of.get("value")), _number(of.get("low")), _number(of.get("high")))])
        for name, of in models.items()
    ]
    requests = as_object(as_object(audit.get("facts")).get("requests"))
    by_request = [Row(_text(number), [word(_text(answer))]) for number, answer in requests.items()]
    told = "The attack of the audit, with 95 % intervals. A model has forgotten if it is like the retrained one."
    parts: list[Table | Paragraph] = []
    if rows:
        parts += [Paragraph(told), Table("audit", "model", [Column("FT AUC of the audit")], rows)]
    if by_request:
        parts.append(Table("requests", "request", [Column("verdict", words=True)], by_request))
    return parts


def as_object(of: object) -> Mapping[str, Any]:
    """The object, or an empty one: files may have been edited."""
    return of if isinstance(of, dict) else {}


def _text(of: object) -> str:
    return printable(str(of)) if isinstance(of, str) and of else "an unknown value"


def _number(of: object) -> float:
    return float(of) if is_number(of) else math.nan


def _whole(of: object) -> int:
    return of if isinstance(of, int) and not isinstance(of, bool) else 0
