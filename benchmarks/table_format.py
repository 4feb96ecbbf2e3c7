"""What every table of results is made with."""

from typing import Any


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured_on(result: dict[str, Any]) -> str:
    machine = result["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread(s)"
    return f"{where}; torch {machine['versions']['torch']}; commit {machine['commit']}"


def cell(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def spread(value: dict[str, float | None], digits: int = 1) -> str:
    """Of a no-op's seconds there is no mean, of a single model no deviation."""
    mean, deviation = value["mean"], value["deviation"]
    return (
        "-"
        if mean is None
        else f"{mean:.{digits}f}"
        if deviation is None
        else f"{mean:.{digits}f} ± {deviation:.{digits}f}"
    )
