"""The tables of docs/benchmarks/audit.md and index.md."""

from typing import Any

from table_format import markdown, measured_on


def rmia(result: dict[str, Any]) -> str:
    """The signal of every model at once by the op, model by model in PyTorch."""
    names = ("op", "eager", "torch.compile")
    rows = [
        [
            row,
            *(f"{entry['microseconds'][name]['median'] / 1000:.0f}" for name in names),
            *(f"{entry['times the op'][name]:.1f}x" for name in names[1:]),
        ]
        for row, entry in result["signal"]["table"].items()
    ]
    header = ["models x samples x classes", *(f"{name}, ms" for name in names), *(f"{name} / op" for name in names[1:])]
    score = result["score"]
    forms = [
        [
            name,
            f"{score['milliseconds'][name]['median']:.1f}",
            f"{score['times rmia'][name]:.1f}x",
            f"{score['peak MiB'][name]:.1f}",
            f"{score['memory over rmia'][name]:.1f}x",
        ]
        for name in score["milliseconds"]
    ]
    head = [f"{score['samples']:,} against {score['population']:,}", "ms", "/ rmia", "peak MiB", "/ rmia"]
    note = (
        f"Signal: median of {result['signal']['repeats']} turns; one thread in CPU time, two in wall time beside "
        f"other programs. Score: CPU time, median of {score['repeats']} turns. {measured_on(result)}."
    )
    return f"{markdown(header, rows)}\n\n{markdown(head, forms)}\n\n{note}"


def audit(result: dict[str, Any]) -> str:
    """Areas of original, AMUN and retrained model, by attack and number of references; of some attacks the most."""

    def area(found: dict[str, Any], key: str) -> str:
        error = found[key]["standard error"]
        return f"{found[key]['mean']:.1f}" + ("" if error is None else f" ± {error:.1f}")

    parts = []
    for name, table in result["tables"].items():
        areas = table["areas"]
        rows = [
            [
                attack,
                count,
                *(area(areas["original"][count][attack], key) for key in ("FT", "FR")),
                area(areas["AMUN"][count][attack], "FT"),
                *(area(areas["retrained"][count][attack], key) for key in ("FT", "FR", "RT")),
            ]
            for attack in areas["original"][str(table["references"])]
            for count in areas["original"]
            if attack in areas["original"][count]
            and (attack in ("RMIA", "RMIA, offline") or count == str(table["references"]))
        ]
        header = ["attack", "references", "original FT", "original FR", "AMUN FT", "retrained FT", "FR", "RT"]
        parts += [f"{name}, {table['seeds']} seeds:", markdown(header, rows)]
    return "\n\n".join([*parts, f"AUC in percent, mean ± standard error over seeds. {measured_on(result)}."])


def references(result: dict[str, Any]) -> str:
    """Reference models an hour, by how they are trained."""

    def error(value: dict[str, float]) -> str:
        return f"{value['mean']:.1f} ± {value['standard error']:.1f}"

    parts = []
    for name, table in result["tables"].items():
        rows = [
            [
                way,
                f"{row['models an hour']['best']:.0f} ({row['models an hour']['median']:.0f})",
                f"{row['times plain']:.2f}x",
                f"{row['cpu']['best']:.1f} ({row['cpu']['median']:.1f})",
                error(row["held_out"]),
                "" if way == "plain loop" else error(row["difference"]),
            ]
            for way, row in table["rows"].items()
        ]
        told = f"{table['models']} models a row, {table['models'] // result['rounds']} a turn"
        about = f"{name}, {table['samples']:,} samples, {table['epochs']} epochs; {told}:"
        header = ["how", "models an hour", "/ plain loop", "CPU s a model", "held out, %", "- plain loop"]
        parts += [about, markdown(header, rows)]
    note = (
        f"Wall time, best (median) of {result['rounds']} turns, and the ratio of the best; other programs ran as well. "
        "Held out: samples whose class gets more than half the probability, of those that a model has not seen; mean ± "
        "standard error over models, and over the differences between models that began alike. "
        f"{measured_on(result)}."
    )
    return "\n\n".join([*parts, note])


def training_step(result: dict[str, Any]) -> str:
    """Each combination of faster arithmetic: milliseconds of a step, and how many times as fast as without."""
    table = result["table"]
    rows = [
        [
            way,
            *(
                f"{entry['microseconds'][way]['median'] / 1000:.0f} ({entry['times plain'][way]:.2f}x)"
                for entry in table.values()
            ),
        ]
        for way in next(iter(table.values()))["microseconds"]
    ]
    note = (
        f"CPU time in milliseconds, median of {result['repeats']} turns of {result['calls']} steps. "
        f"{measured_on(result)}."
    )
    return f"{markdown(['step', *table], rows)}\n\n{note}"


def shadows(result: dict[str, Any]) -> str:
    """What each attack finds in models of one method, and how far one run of it is from the next."""
    rows = [
        [name, attack, *(f"{found['mean']:.1f} ± {found['deviation']:.1f}" for found in of)]
        for name, table in result["tables"].items()
        for attack, of in {
            attack: [table["areas"][method][attack] for method in table["areas"]]
            for attack in next(iter(table["areas"].values()))
        }.items()
    ]
    table = next(iter(result["tables"].values()))
    runs = next(iter(next(iter(table["areas"].values())).values()))["runs"]
    header = ["data", "attack", *table["areas"]]
    note = f"AUC in percent, mean ± standard deviation over {runs} models of each method. {measured_on(result)}."
    return f"{markdown(header, rows)}\n\n{note}"


def kills(result: dict[str, Any]) -> str:
    """Each command: its file-system events, the kills, and after how many of them something was not as it must be."""
    rows = [
        [name, *(str(of) for of in (row["events"], row["kills"], len(row["faults"])))] for name, row in result.items()
    ]
    return markdown(["amun ...", "events", "kills", "faults"], rows)


def reference_precision(result: dict[str, Any]) -> str:
    """What references in bfloat16 change in the areas of an audit."""
    shown = {"original": "RT", "retrained": "FT", "AMUN": "FT"}
    parts = []
    for name, table in result["tables"].items():
        rows = [
            [
                f"{model}, {shown[model]}",
                attack,
                f"{area['mean']:.1f} ± {area['deviation']:.1f}",
                ", ".join(f"{difference:+.1f}" for difference in area["differences"]),
            ]
            for model, areas in table["areas"].items()
            for attack, area in areas.items()
            if attack != "confidence"  # which needs no references
        ]
        cpu = ", ".join(f"{seconds:.1f} s in {precision}" for precision, seconds in table["cpu"].items())
        about = f"{name}, {table['seeds']} seeds with {table['references']} references each; CPU of one: {cpu}:"
        parts += [about, markdown(["model, AUC", "attack", "float32", "bfloat16 - float32"], rows)]
    note = "AUC in percent, mean ± standard deviation over seeds; differences of each seed"
    return "\n\n".join([*parts, f"{note}. {measured_on(result)}."])
