"""The tables of docs/benchmarks/requests.md."""

from typing import Any

from table_format import markdown, measured_on


def copies(result: dict[str, Any]) -> str:
    """Copies that are found, and pairs of different images."""
    found = result["found"]
    names = next(iter(found.values()))
    shares = [[name, *(f"{row[name]:.0f}" for row in found.values())] for name in names]
    pairs = [
        [name, str(row["rows"]), str(row["images"]), str(row["pairs"]), f"{row['cpu']:.2f}"]
        for name, row in result["pairs"].items()
    ]
    return "\n\n".join(
        [
            markdown(["copies found, %", *found], shares),
            markdown(["different images", "rows", "images", "pairs", "CPU seconds"], pairs),
            f"{measured_on(result)}.",
        ]
    )
