"""What every page of ours is made of: one look in light and dark, a table, a list of terms. Nothing from elsewhere."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape

SERIES = 6  # colours for things of any number, which repeat then: --series-0 and so on

CSS = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #63636b; --paper: #fff; --line: #dcdce1; --mark: #eef4ff;
  --forget: #c8470a; --test: #1f5fd6; --retain: #9a9aa3; --series-0: #1f5fd6; --series-1: #c8470a; --series-2: #1b7f4d;
  --series-3: #8a3fc4; --series-4: #8a6d1a; --series-5: #0b7a8a }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf0; --soft: #a3a3ad; --paper: #17171a; --line: #3a3a41;
  --mark: #1d2a40; --forget: #ff9a5c; --test: #82b1ff; --retain: #7d7d87; --series-0: #82b1ff; --series-1: #ff9a5c;
  --series-2: #6fd39a; --series-3: #cf9bff; --series-4: #e0c060; --series-5: #5fd0de } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .6rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem }
p { max-width: 46rem; margin: .5rem 0 } .soft, dl { color: var(--soft); font-size: .875rem }
.scroll { overflow-x: auto; margin-top: 1.2rem } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .4rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper) }
tr.baseline > * { background: var(--mark); font-weight: 600 } tbody th { font-weight: inherit }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .9rem; margin: .8rem 0 } dd { margin: 0 }
dt { font-weight: 600; overflow-wrap: anywhere } dd { overflow-wrap: anywhere }
figure { margin: 0; min-width: 0 } figcaption { font-size: .875rem } svg { display: block; width: 100%; height: auto }
svg text { font-family: inherit !important }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1.2rem }
.key span { margin-right: 1.2rem; white-space: nowrap }
.key i { display: inline-block; width: 1.6em; margin-right: .4em; vertical-align: middle; border-top: 3px solid }
.key svg { display: inline-block; width: 2.2em; height: .8em; margin-right: .4em; vertical-align: middle }
"""


def document(title: str, sections: Iterable[str], css: str = "") -> str:
    """The whole page; `css` is what this one has beside the common look."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{CSS}{css}</style>
</head>
<body>
{"".join(sections)}</body>
</html>
"""


def table(lines: Sequence[Sequence[str]], marked: str | None = None) -> str:
    """Headings and rows of text, the name of a row first; the row `marked` stands out. Scrolls where it is too wide."""
    headings, *rows = lines
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(
        f'<tr{" class=baseline" if name == marked else ""}><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(value)}</td>" for value in values)
        + "</tr>\n"
        for name, *values in rows
    )
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="Results">
<table><thead><tr>{head}</tr></thead><tbody>
{body}</tbody></table></div>
"""


def terms(entries: Mapping[str, str]) -> str:
    """Each term and what it means."""
    lines = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>\n" for term, meaning in entries.items())
    return f"<dl>\n{lines}</dl>\n"


def facts(entries: Mapping[str, object]) -> str:
    """How the page's numbers were made; nothing where there is nothing to tell."""
    if not entries:
        return ""
    return f"<h2>How this was made</h2>\n{terms({str(key): _words(value) for key, value in entries.items()})}"


def _words(value: object) -> str:
    return json.dumps(value, default=str) if isinstance(value, dict | list | tuple) else str(value)
