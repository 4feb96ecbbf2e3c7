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


def chain(result: dict[str, Any]) -> str:
    """A row for each request and model."""
    columns = [*next(iter(result["table"][0].values()))]
    rows = [
        [f"{number}, {name}", *(f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in of.values())]
        for number, models in zip(result["after"], result["table"], strict=True)
        for name, of in models.items()
    ]
    note = f"{result['seeds']} seeds, mean ± standard deviation. {measured_on(result)}."
    return f"{markdown(['after request', *columns], rows)}\n\n{note}"


def unfamiliar(result: dict[str, Any]) -> str:
    """Percent of training samples that are named, over seeds."""
    shares = result["unfamiliar"]
    names = next(iter(shares.values()))[0]
    rows = [[name, *(" / ".join(f"{run[of]:.1f}" for run in runs) for of in names)] for name, runs in shares.items()]
    note = f"Of 2,000 training samples, against 3,000 test samples; a model per seed. {measured_on(result)}."
    return f"{markdown(['original trained for', *(f'named, {name}, %' for name in names)], rows)}\n\n{note}"


def bookkeeping(result: dict[str, Any]) -> str:
    """Processor time of a request, and the share of its bookkeeping."""
    rows = [
        [name, *(f"{row[key]:.2f}" for key in ("forget", "bookkeeping", "percent"))]
        for name, row in result["table"].items()
    ]
    header = ["request", "CPU seconds of amun forget", "of them bookkeeping", "%"]
    return f"{markdown(header, rows)}\n\n{measured_on(result)}."
