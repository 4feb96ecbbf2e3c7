"""The tables of both README.md, from results/*.json: between <!-- name --> and <!-- end -->."""

import re
from pathlib import Path
from typing import Any

from common import read


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured_on(result: dict[str, Any]) -> str:
    machine = result["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread(s)"
    return f"{where}; torch {machine['versions']['torch']}; commit {machine['commit']}"


def search_step(result: dict[str, Any]) -> str:
    rows = [
        [
            batch,
            *(
                f"{entry['microseconds'][name]['median']:.0f} ({entry['microseconds'][name]['best']:.0f})"
                for name in ("fused", "eager", "torch.compile")
            ),
            *(f"{entry['times the fused step'][name]:.1f}x" for name in ("eager", "torch.compile")),
        ]
        for batch, entry in result["batch"].items()
    ]
    header = ["batch", "fused, us", "eager, us", "torch.compile, us", "eager / fused", "torch.compile / fused"]
    note = f"CPU time per step, median (best) of {result['repeats']} turns of ten calls. {measured_on(result)}."
    return f"{markdown(header, rows)}\n\n{note}"


def search(result: dict[str, Any]) -> str:
    columns = ("found", "median", "p95", "forwards", "backwards", "cpu ratio", "wall ratio", "cpu", "peak MiB")
    parts = []
    for name, table in result["tables"].items():
        rows = [
            [row, *("-" if values[key] is None else f"{values[key]:.3g}" for key in columns)]
            for row, values in table.items()
        ]
        parts.append(f"{name}\n\n{markdown(['search', *columns], rows)}")
    settings = f"{result['model']}, {result['samples']} images each, batch {result['batch_size']}"
    return "\n\n".join([*parts, f"{settings}. cpu in seconds. {measured_on(result)}."])


def demo(result: dict[str, Any]) -> str:
    columns, far = ("UA", "RA", "TA", "FT AUC", "gap", "seconds"), ("UA", "TA", "FT AUC")
    rows = [
        [row, *(f"{values[key]['mean']:.1f} ± {values[key]['std']:.1f}" if key in values else "-" for key in columns)]
        for row, values in result["table"].items()
    ]
    distances = [
        [row, *(f"{values[key]:.1f}" for key in far)] for row, values in result["distance from retrain"].items()
    ]
    return "\n\n".join(
        [
            markdown(["model", *columns], rows),
            "Mean distance from the retrained model of the same seed, in points:",
            markdown(["model", *far], distances),
            f"{result['seeds']} seeds, mean ± standard deviation. {measured_on(result)}.",
        ]
    )


def demo_once(result: dict[str, Any]) -> str:
    """What `make demo` prints, seed 0."""

    def cell(values: dict[str, float], key: str) -> str:
        error = f" ± {values['FT SE']:.1f}" if key == "FT AUC" else ""
        return f"{values[key]:.1f}{error}" if key in values else "-"

    columns = ("UA", "RA", "TA", "FT AUC", "gap", "seconds")
    rows = [[row, *(cell(values, key) for key in columns)] for row, values in result["runs"][0].items()]
    return f"{markdown(['model', *columns], rows)}\n\n200 images forgotten of 2,000. {measured_on(result)}."


HERE = Path(__file__).parent
# page -> name of the block and of the result -> its table
PAGES = {
    HERE / "README.md": {"search_step": search_step, "search": search, "demo": demo},
    HERE.parent / "README.md": {"demo": demo_once},
}


def write_pages() -> None:
    for page, blocks in PAGES.items():
        text = page.read_text()
        for name, table in blocks.items():
            if not (result := read(name)):
                continue
            new = f"<!-- {name} -->\n{table(result)}\n<!-- end -->"
            text, count = re.subn(rf"<!-- {name} -->.*?<!-- end -->", lambda _, new=new: new, text, flags=re.S)
            if count != 1:
                raise ValueError(f"{page} must have one block for {name}, got {count}")
        page.write_text(text)
