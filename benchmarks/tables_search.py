"""The tables of docs/benchmarks/search.md."""

import statistics
from typing import Any

from table_format import cell, markdown, measured_on


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
    """Every row of every network."""
    columns = (
        "found",
        "mean",
        "median",
        "p95",
        "forwards",
        "backwards",
        "mean ratio",
        "median ratio",
        "cpu ratio",
        "cpu",
    )
    parts = []
    for name, table in result["tables"].items():
        rows = [
            [row, *(cell(values.get(key)) for key in columns)] if "failed" not in values else [row, values["failed"]]
            for row, values in table["rows"].items()
        ]
        about = f"{name}, median logit gap {table['median logit gap']}"
        shown = markdown(["search", *columns], rows)
        parts.append(f"<details markdown><summary>{about}</summary>\n\n{shown}\n\n</details>")
    return "\n\n".join([*parts, f"{result['samples']} images each. cpu in seconds. {measured_on(result)}."])


def search_summary(result: dict[str, Any]) -> str:
    """Median distance and CPU time as ratios to the published loop, mean of training and test images."""
    tables = {name: table["rows"] for name, table in result["tables"].items()}
    networks = list(dict.fromkeys(name.split(",")[0] for name in tables))

    def over(network: str, row: str, key: str) -> float | None:
        values = [rows[row].get(key) for name, rows in tables.items() if name.split(",")[0] == network]
        return None if None in values else statistics.mean(values)  # type: ignore[type-var]

    lines = []
    for row in next(iter(tables.values())):
        every = [rows[row] for rows in tables.values() if row in rows and "failed" not in rows[row]]
        if len(every) < len(tables):
            continue
        gradients = [values["backwards"] for values in every]
        found, evaluations = min(values["found"] for values in every), cell(statistics.mean(gradients))
        medians = [cell(over(network, row, "median ratio")) for network in networks]
        cpu = cell(over("resnet18", row, "cpu ratio"), 2) if "resnet18" in networks else "-"
        lines.append([row, cell(found), evaluations, *medians, cpu])
    header = ["search", "found", "gradients", *(f"median, {network}" for network in networks), "CPU, resnet18"]
    note = (
        f"Ratios to the published loop; {result['samples']} training and as many test images a network, their mean. "
        f"A median over fewer than all found says little. {measured_on(result)}."
    )
    return f"{markdown(header, lines)}\n\n{note}"


def search_in_short(result: dict[str, Any]) -> str:
    """The rows that a reader of the main page chooses from, on the ResNet-18."""
    wanted = {
        "published loop": "the published loop",
        "amun_ext pgd": 'method="pgd", the same search',
        "amun_ext deepfool": 'method="deepfool"',
        "amun_ext ddn, 10 steps": 'method="ddn", steps=10',
        "amun_ext ddn": 'method="ddn"',
        "amun_ext ddn, 20 steps": 'method="ddn", steps=20',
        "adv-lib DDN, 20 steps, tuned, not rounded": "adv-lib DDN, 20 steps, tuned",
        "adv-lib DDN, 100 steps": "adv-lib DDN, 100 steps",
        "foolbox DDN, 100 steps": "foolbox DDN, 100 steps",
        "torchattacks PGDL2, eps doubled": "torchattacks PGDL2, radius doubled",
    }
    parts = [table["rows"] for name, table in result["tables"].items() if name.startswith("resnet18")]
    lines = []
    for row, label in wanted.items():
        if any("failed" in rows[row] or rows[row]["found"] < 1 for rows in parts):
            continue
        ratios = [cell(rows[row][f"{key} ratio"]) for key in ("mean", "median") for rows in parts]
        gradients, cpu = (statistics.mean(rows[row][key] for rows in parts) for key in ("backwards", "cpu ratio"))
        lines.append([label, cell(gradients), *ratios, cell(cpu, 2)])
    header = ["search", "gradients", "mean distance, training", "test", "median, training", "test", "CPU time"]
    note = (
        f"ResNet-18 of width 16 on Fashion-MNIST, {result['samples']} training and as many test images, all found; "
        f"distances and time as ratios to the published loop. {measured_on(result)}."
    )
    return f"{markdown(header, lines)}\n\n{note}"


def distances(result: dict[str, Any]) -> str:
    keys = (
        "found",
        "gradients",
        "passes",
        "cpu ratio",
        "median ratio",
        "p95 ratio",
        "ratio p5",
        "ratio p50",
        "ratio p95",
    )
    header = ["found", "gradients", "passes", "CPU", "median", "95 %", "sample by sample, 5 %", "50 %", "95 %"]
    lines = [
        [name, row, *(cell(values[key]) for key in keys)]
        for name, rows in result["tables"].items()
        for row, values in rows.items()
    ]
    note = (
        f"{result['samples']} images each. CPU time and distances as ratios to pgd: of the medians, of the 95 % "
        f"quantiles, and quantiles of the ratios. {measured_on(result)}."
    )
    return f"{markdown(['network and images', 'search', *header], lines)}\n\n{note}"


def linear_distances(result: dict[str, Any]) -> str:
    lines = [
        [classes, row, str(values["samples"]), str(values["without"]), cell(values["gradients"])]
        for classes, rows in result["linear"].items()
        for row, values in rows.items()
    ]
    header = ["classes", "search", "samples", "without an example", "gradients"]
    return f"{markdown(header, lines)}\n\n{measured_on(result)}."


def memory(result: dict[str, Any]) -> str:
    names = [name for name in result if isinstance(result[name], dict) and "MiB at most" in result[name]]
    rows = [[name, *(str(result[name][key]) for key in ("MiB before", "MiB at most", "seconds"))] for name in names]
    shape = "x".join(map(str, result["shape"]))
    note = f"{result['samples']:,} images of {shape}, anonymous memory of the process. {measured_on(result)}."
    return f"{markdown(['results', 'MiB before', 'MiB at most', 'seconds'], rows)}\n\n{note}"
