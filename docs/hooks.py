"""What mkdocs runs while it builds: what pages say of commands and methods is made from their tables."""

import argparse
from typing import Any

from amun_ext.cli import parser
from amun_ext.unlearning import METHODS

WIDTH = 80


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    for (path, mark), made in GENERATED.items():
        if page.file.src_uri == path:
            markdown = markdown.replace(mark, made())
    return markdown


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
    ("command-line.md", "<!-- commands -->"): commands,
    ("guides/unlearning.md", "<!-- methods -->"): method_table,
    ("reference/unlearning.md", "<!-- methods -->"): method_reference,
}
