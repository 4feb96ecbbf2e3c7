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


def plan(result: dict[str, Any]) -> str:
    """CPU seconds and memory of each stage, predicted and real."""
    rows = [
        [
            f"{network}, {count}, {stage}",
            *(f"{row[key]:.2f}" for key in ("predicted", "real")),
            f"{row['error']:+.0f}",
            *(f"{row[key]:.0f}" for key in ("predicted MiB", "real MiB")),
            f"{row['wall']:.1f}",
        ]
        for network, counts in result["table"].items()
        for count, stages in counts.items()
        for stage, row in stages.items()
    ]
    header = ["network, processes, stage", "predicted, CPU s", "real, CPU s", "off by, %"]
    table = markdown([*header, "predicted MiB", "real MiB", "real, wall s"], rows)
    load = " to ".join(f"{each:.0f}" for each in result["load"])
    threads = f"{result['threads in all']} threads in all, beside a load of {load}"
    return f"{table}\n\n{threads}. {measured_on(result)}."


def micro_batches(result: dict[str, Any]) -> str:
    """MiB of a search by batch size, and of a training by accumulation steps."""
    samples = result["samples"]
    names = {"search": "search, batch_size {}", "training": f"training, batches of {samples}, accumulation_steps {{}}"}
    rows = [
        [names[kind].format(number), f"{mib:.0f}"] for kind, of in result["table"].items() for number, mib in of.items()
    ]
    return f"{markdown(['', 'MiB'], rows)}\n\n{samples} images of 3x64x64, a ResNet-18. {measured_on(result)}."


def million(result: dict[str, Any]) -> str:
    """The stages, for each batch size."""
    rows = [
        [
            f"batches of {int(batch):,}: {stage['name']}",
            f"{stage['seconds'] / 3600:,.3g}",
            f"{stage['network_seconds'] / 3600:,.3g}",
            f"{stage['sent_bytes'] / 1e12:,.3g}",
            f"{stage['memory_bytes'] / 2**30:,.0f}",
            stage["limit"],
        ]
        for batch, stages in result["batches"].items()
        for stage in stages
    ]
    header = ["stage", "hours", "of them network", "TB sent per rank", "GiB per rank", "limited by"]
    return f"{markdown(header, rows)}\n\nA prediction; commit {result['machine']['commit']}."
