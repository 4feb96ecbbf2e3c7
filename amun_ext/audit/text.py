"""An audit in words: for a terminal, and as Markdown for a pull request."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from amun_ext.audit.verdict import CANNOT_TELL
from amun_ext.evaluation.text import aligned, legend, number

if TYPE_CHECKING:
    from amun_ext.audit import Audit
    from amun_ext.audit.measures import Number

CAVEAT = (
    "An audit is an empirical measurement: it describes these models on these samples under these attacks. A stronger "
    "attack may find what they do not, and the interval of one model does not hold what another run would change."
)
INTERVALS = "[low, high]: 95 % interval; of several models the range of theirs"
SHOWN = 10  # samples in a list


def shown(value: Number, digits: int = 1) -> str:
    """A value with its 95 % interval in brackets."""
    if math.isnan(value.low) or math.isnan(value.value):
        return number(value.value, digits)
    return f"{number(value.value, digits)} [{number(value.low, digits)}, {number(value.high, digits)}]"


def headline(audit: Audit) -> str:
    """The verdict and its reason, a sentence or two."""
    verdict = audit.verdict
    said = f"{verdict.answer.capitalize()}: {verdict.reason}."
    if verdict.answer != CANNOT_TELL or math.isnan(verdict.enough_ids):
        return said
    if verdict.enough_ids > audit.sizes["forget"] + audit.sizes["retain"]:
        return f"{said} No number of ids that the training set has would decide it."
    return (
        f"{said} With {verdict.enough_ids:,.0f} ids rather than {audit.sizes['forget']:,} this difference would decide."
    )


def sentences(audit: Audit) -> list[str]:
    """What else a reader should know, in order of weight."""
    members = audit.members
    told = [*audit.flags]
    others = {attack: each for attack, each in audit.verdicts.items() if each is not audit.verdict}
    told += [f"By {attack} alone: {each.answer} ({each.reason})" for attack, each in others.items()]
    told.append(
        f"To {members.attack} {len(members.samples)} of {audit.sizes['forget']} forget samples look more like members "
        f"than 99 % of the test samples do; {members.by_chance:.1f} would by chance."
    )
    if audit.runs:
        told.append(
            f"U-LiRA against {audit.runs['runs']:.0f} other runs of the method: FT AUC {audit.runs['mean']:.1f} +- "
            f"{audit.runs['deviation']:.1f}, mean and deviation over runs and samples."
        )
    if audit.harm:
        lost, gained = audit.harm["retain samples lost"], audit.harm["retain samples gained"]
        told.append(
            f"Of {audit.sizes['retain']} retained samples {lost:.0f} are wrong that the model it is compared with has "
            f"right, {gained:.0f} the other way round."
        )
    return [f"{each[0].upper()}{each[1:]}{'' if each.endswith('.') else '.'}" for each in told]


def cells(audit: Audit) -> list[list[str]]:
    """A measure in every row, a model in every column."""
    names = list(audit.rows)
    lines = [
        [
            measure.name,
            *(shown(row[measure.name], measure.digits) if measure.name in row else "-" for row in audit.rows.values()),
        ]
        for measure in audit.measures
    ]
    return [["", *names], *lines]


def attack_cells(audit: Audit) -> list[list[str]]:
    """An attack and a model in every row."""
    columns = list(next(iter(next(iter(audit.attacks.values())).values())))
    lines = [
        [f"{attack}: {model}", *(shown(row[column]) for column in columns)]
        for attack, rows in audit.attacks.items()
        for model, row in rows.items()
    ]
    return [["", *columns], *lines]


def member_cells(audit: Audit) -> list[list[str]]:
    """The forget samples that look most like members."""
    lines = [
        [str(each.id), number(each.above, 2), number(100 * each.confidence, 1)]
        for each in audit.members.samples[:SHOWN]
    ]
    return [["id", "above % of the test samples", "confidence in its class, %"], *lines]


def render(audit: Audit) -> str:
    told = [line for each in [headline(audit), *sentences(audit)] for line in textwrap.wrap(each, 100)]
    tables = [*aligned(cells(audit)), "", *aligned(attack_cells(audit))]
    if audit.members.samples:
        tables += ["", "the forget samples that look most like members", *aligned(member_cells(audit))]
    explained = legend({measure.name: measure.explanation for measure in audit.measures})
    lines = [
        *told,
        "",
        *tables,
        "",
        INTERVALS,
        *explained,
        "",
        *textwrap.wrap(CAVEAT, 100),
    ]
    return "\n".join(line.rstrip() for line in lines)


def markdown(audit: Audit) -> str:
    listed = "".join(f"- {each}\n" for each in sentences(audit))
    explained = "".join(f"- {measure.name}: {measure.explanation}\n" for measure in audit.measures)
    members = f"### Forget samples that look most like members\n\n{_table(member_cells(audit))}\n"
    return f"""## Audit: {audit.verdict.answer}

{headline(audit)}

{listed}
{_table(cells(audit))}
{INTERVALS}.

### Attacks

{_table(attack_cells(audit))}
{members if audit.members.samples else ""}<details><summary>What the rows mean</summary>

{explained}
</details>

{CAVEAT}
"""


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *rows = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, rule, *rows])
