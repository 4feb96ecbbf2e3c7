"""The tables of docs/benchmarks/gpu.md."""

from typing import Any

from table_format import cell, markdown, measured_on


def kernels(result: dict[str, Any]) -> str:
    """An op and architecture a line."""
    whole = {"search_step": "<float, true>", "masked_sgd": "<float, float>", "sm_taylor": "<4, 4, float>"}
    lines = []
    for architecture in sorted(result["kernels"], key=lambda name: int(name.removeprefix("sm_"))):
        found = result["kernels"][architecture]
        for op in dict.fromkeys(name.partition("<")[0] for name in found):
            facts = [each for name, each in found.items() if name.startswith(f"{op}<")]
            ranges = [sorted({each[key] for each in facts}) for key in ("registers", "shared")]
            spans = [f"{span[0]:,}" + (f" - {span[-1]:,}" if len(span) > 1 else "") for span in ranges]
            float32 = found[op + whole.get(op, "<loss 0, true, float>")]
            wide = f"{float32['wide loads']}, {float32['wide stores']}" if "wide loads" in float32 else "-"
            in_local = sum(each["spilled"] + each["stack"] + each.get("local", 0) for each in facts)
            lines.append([architecture, op, str(len(facts)), *spans, str(float32["registers"]), wide, str(in_local)])
    header = ["GPU", "op", "kernels", "registers", "shared memory, bytes", "registers, float32", "16-byte", "spilled"]
    return f"{markdown(header, lines)}\n\nnvcc's report, no run on a device. Commit {result['machine']['commit']}."


def gpu_ops(result: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{entry['bytes'] / 1e9:.3g}",
            f"{entry['floor'] * 1e6:.0f}",
            f"{entry['seconds'] * 1e6:.0f}",
            f"{entry['share']:.0%}",
            f"{entry['target']:.0%}",
        ]
        for name, entry in result["table"].items()
    ]
    header = ["op and size", "GB", "floor, us", "time, us", "share of the copy", "wanted"]
    optimizers = ", ".join(f"{name} {taken * 1e6:.0f} us" for name, taken in result["optimizers"].items())
    note = (
        f"A copy moves {result['copy'] / 1e12:.2f} TB/s. Medians of {result['repeats']} calls. A step of 100 million "
        f"parameters: {optimizers}. Driver {result['machine']['driver']}. {measured_on(result)}."
    )
    return f"{markdown(header, rows)}\n\n{note}"


def gpu_search(result: dict[str, Any]) -> str:
    searches = [
        [
            name,
            str(entry["samples"]),
            *(cell(entry[key]) for key in ("found", "mean", "median")),
            f"{entry['rate']:.0f}",
        ]
        for name, entry in result["searches"].items()
    ]
    parts = [markdown(["search", "samples", "found", "mean distance", "median", "samples a second"], searches)]
    rates = {"ddn, 10 gradients, batch size": result.get("batch size")}
    if ways := result.get("ways"):
        rates[f"the same, batch size {ways['batch size']}"] = ways["rate"]
    rates["training"] = result.get("training")
    for title, part in rates.items():
        if part:  # a run that was stopped has kept what was done
            parts.append(markdown([title, "a second"], [[name, f"{rate:.0f}"] for name, rate in part.items()]))
    if shares := result.get("shares"):
        parts.append(f"Of a search's time: {', '.join(f'{share:.1%} {name}' for name, share in shares.items())}.")
    parts.append(f"Driver {result['machine']['driver']}. {measured_on(result)}.")
    return "\n\n".join(parts)


def gpu_paper(result: dict[str, Any]) -> str:
    parts = []
    for request, table in result["tables"].items():
        rows = [
            [
                name,
                *(f"{row[key]:.2f}" for key in ("UA", "RA", "TA")),
                *(f"{row[attack]['FT AUC']['value']:.2f}" for attack in ("RMIA", "RMIA, as published", "confidence")),
                f"{row['gap']:.2f}",
            ]
            for name, row in table["rows"].items()
        ]
        header = [f"{request} forgotten", "UA", "RA", "TA", "FT AUC, RMIA", "as published", "confidence", "gap"]
        parts.append(markdown(header, rows))
    parts.append(
        f"{result['references']} reference models; one model a row. Driver {result['machine']['driver']}. "
        f"{measured_on(result)}."
    )
    return "\n\n".join(parts)
