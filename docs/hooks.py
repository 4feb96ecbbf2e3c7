"""What mkdocs runs while it builds: what pages say of commands, methods and experiments is made."""

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from amun_ext.cli import parser
from amun_ext.experiments.comparison import Statistic
from amun_ext.experiments.reproduce import EXPERIMENTS, Reproduction
from amun_ext.experiments.results import curves, marks
from amun_ext.experiments.scales import SCALES
from amun_ext.report import Table, parts
from amun_ext.report.figures import in_light_colours, swatch
from amun_ext.unlearning import METHODS

WIDTH = 80


RESULTS = Path(__file__).parents[1] / "benchmarks/results/experiments"
EXPERIMENT = "<!-- experiment -->"  # on a page experiments/NAME.md: the claim, the command and what it gave


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if EXPERIMENT in markdown:
        markdown = markdown.replace(EXPERIMENT, experiment(Path(page.file.src_uri).stem))
    for (path, mark), made in GENERATED.items():
        if page.file.src_uri == path:
            markdown = markdown.replace(mark, made())
    return markdown


def experiment(name: str) -> str:
    """From the JSON of `amun reproduce`."""
    result = Reproduction.read(RESULTS / f"{name}.json")
    facts, (claim, *blocks) = result.facts, result.document().blocks
    fewer = facts["models"] != SCALES[facts["scale"]].repeats[0]
    command = f"    amun reproduce {name} --scale {facts['scale']}" + (f" --seeds {facts['models']}" if fewer else "")
    count = len({cell["model"] for cell, _ in result.cells})
    models = f"{count} original models of {facts['model']}, each with a forget set of its own"
    shown = [claim.text, command, f"{facts['data']}, {models}; tables have mean ± standard deviation, and n."]
    for block in blocks:
        if isinstance(block, parts.Figures):
            shown += [key(block.key), *map(figure, block.figures)]
        elif isinstance(block, Table):
            shown.append(block.to_markdown())
        elif isinstance(block, parts.Heading):
            shown.append(f"## {block.text}")
        elif isinstance(block, parts.Paragraph):
            shown.append(block.text)
    return "\n\n".join(part for part in shown if part)


def chain_figures() -> str:
    """Requests one after another, of `benchmarks/bench_chain.py`."""
    result = json.loads((RESULTS.parent / "chain.json").read_text(encoding="utf-8"))
    after, styles, numbers = result["table"], marks([*result["table"][0]]), result["after"]
    (step,) = {later - earlier for earlier, later in pairwise(numbers)}

    def drawn(measure: str, unit: str) -> str:
        series = {name: [Statistic(*of[name][measure], result["seeds"]) for of in after] for name in styles}
        about = "Mean, and a band of one standard deviation."
        return figure(curves(measure, about, series, styles, "requests", unit, first=numbers[0], step=step))

    measures = {"gap": "points", "FT AUC": "%", "FR - FT": "points", "TA": "%"}
    return "\n\n".join([key([*styles.values()]), *(drawn(*each) for each in measures.items())])


def figure(of: parts.Figure) -> str:
    picture = in_light_colours(of.draw())  # in a div: Markdown would put paragraphs into a bare SVG
    return f'**{of.title}.** {of.about}\n\n<div class="figure">\n{picture}</div>'


def key(of: Sequence[parts.Mark]) -> str:
    return ", ".join(f"{in_light_colours(swatch(each))}&nbsp;{each.name}" for each in of)


def experiment_table() -> str:
    rows = [
        f"| {f'[`{name}`]({name}.md)' if (RESULTS / f'{name}.json').exists() else f'`{name}`'} | {text(row.title)} |"
        for name, row in EXPERIMENTS.items()
    ]
    return "\n".join(["| name | experiment |", "| --- | --- |", *rows])


def method_table() -> str:
    rows = [
        f"| `{name}` | {text(row.description)} | {'no' if row.needs_retain else 'yes'} |"
        for name, row in METHODS.items()
    ]
    return "\n".join(["| method | what it does | works without the retain set |", "| --- | --- | --- |", *rows])


def method_reference() -> str:
    functions = dict.fromkeys(row.function for row in METHODS.values())
    return "\n\n".join(f"::: {each.__module__}.{each.__name__}" for each in functions)


def commands() -> str:
    (choices,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return "\n\n".join(command(name, each) for name, each in choices.choices.items())


def command(name: str, of: argparse.ArgumentParser) -> str:
    of.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=WIDTH)
    parts = [f"## amun {name}", of.description or "", f"```text\n{of.format_usage()}```"]
    for group in of._action_groups:
        actions = [action for action in group._group_actions if "--help" not in action.option_strings]
        if actions:
            rows = [f"| {spelling(action)} | {text(meaning(action, of))} |" for action in actions]
            parts.append("\n".join([f"| {text(group.title or '')} | |", "| --- | --- |", *rows]))
    if of.epilog:
        parts.append(f"```text\n{of.epilog}\n```")
    return "\n\n".join(parts)


def spelling(action: argparse.Action) -> str:
    """The option's names, and what has to follow: its choices or its value."""
    value = "" if action.nargs == 0 else action.metavar or (action.dest.upper() if action.choices is None else "")
    flags = ", ".join(f"`{flag} {value}`" if value else f"`{flag}`" for flag in action.option_strings)
    return flags.replace("|", "\\|")


def meaning(action: argparse.Action, of: argparse.ArgumentParser) -> str:
    of_choices = "" if action.choices is None else f"One of {', '.join(map(str, action.choices))}. "
    required = " (required)" if action.required else ""
    return of_choices + of._get_formatter()._expand_help(action) + required if action.help else of_choices + required


def text(plain: str) -> str:
    """As it stands, in Markdown."""
    for sign in "\\<>|*_`":
        plain = plain.replace(sign, f"\\{sign}" if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return plain


GENERATED = {
    ("experiments/index.md", "<!-- experiments -->"): experiment_table,
    ("benchmarks/requests.md", "<!-- chain figures -->"): chain_figures,
    ("command-line.md", "<!-- commands -->"): commands,
    ("guides/unlearning.md", "<!-- methods -->"): method_table,
    ("reference/unlearning.md", "<!-- methods -->"): method_reference,
}
