"""The tables of both README.md, from results/*.json: between <!-- name --> and <!-- end -->."""

import re
import statistics
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


def masked_sgd(result: dict[str, Any]) -> str:
    names = ("MaskedSGD", "for-loop", "foreach", "fused")
    rows = [
        [
            row,
            *(f"{entry['microseconds'][name]['median'] / 1000:.1f}" for name in names),
            f"{min(entry['times MaskedSGD'].values()):.2f}x",
        ]
        for row, entry in result["table"].items()
    ]
    header = [
        "parameters, threads, share that is updated",
        *(f"{name}, ms" for name in names),
        "best of them / MaskedSGD",
    ]
    note = f"Median of {result['repeats']} turns of {result['calls']} calls. {measured_on(result)}."
    return f"{markdown(header, rows)}\n\n{note}"


def cell(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


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
        parts.append(f"<details><summary>{about}</summary>\n\n{markdown(['search', *columns], rows)}\n\n</details>")
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


def distances(result: dict[str, Any]) -> str:
    keys = ("found", "gradients", "mean ratio", "median ratio", "p95 ratio", "closer")
    lines = [
        [name, row, *(cell(values[key]) for key in keys)]
        for name, table in result["tables"].items()
        for row, values in table["rows"].items()
    ]
    note = f"{result['samples']} images each; `closer`: share of them on which it is. {measured_on(result)}."
    return f"{markdown(['network and images', 'search', *keys], lines)}\n\n{note}"


def forget(result: dict[str, Any]) -> str:
    """AMUN after each search: distance from retraining over seeds."""
    columns = ("UA", "RA", "TA", "FT AUC", "gap", "UA from retrain", "TA from retrain", "FT AUC from retrain")
    parts = []
    for data in ("fashion-mnist-mini", "fashion-mnist"):
        if data not in result:
            continue
        rows = [
            [
                row,
                *(f"{values[key]['mean']:.1f} ± {values[key]['std']:.1f}" if key in values else "-" for key in columns),
            ]
            for row, values in result[data]["table"].items()
        ]
        searches = [
            [name, *(cell(values[key]) for key in ("median distance", "gradients", "cpu"))]
            for name, values in result[data]["searches"].items()
        ]
        parts += [
            f"{result[data]['images']} images of {data}, {result[data]['seeds']} seeds:",
            markdown(["examples and form", *columns], rows),
            markdown(["search", "median distance", "gradients", "CPU s"], searches),
        ]
    return "\n\n".join([*parts, f"Mean ± standard deviation over seeds. {measured_on(result)}."])


def memory(result: dict[str, Any]) -> str:
    names = [name for name in result if isinstance(result[name], dict) and "MiB at most" in result[name]]
    rows = [[name, *(str(result[name][key]) for key in ("MiB before", "MiB at most", "seconds"))] for name in names]
    shape = "x".join(map(str, result["shape"]))
    note = f"{result['samples']:,} images of {shape}, anonymous memory of the process. {measured_on(result)}."
    return f"{markdown(['results', 'MiB before', 'MiB at most', 'seconds'], rows)}\n\n{note}"


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


def tuning(result: dict[str, Any]) -> str:
    """Gap to retraining on the real request, by what chose the options."""
    gaps, seeds = result["gap"], range(result["seeds"])
    ways = list(dict.fromkeys(name.partition(": ")[2] for name in gaps if ": " in name))
    methods = list(dict.fromkeys(name.partition(": ")[0] for name in gaps if ": " in name))

    def over(names: list[str]) -> str:
        """Mean and deviation over seeds of the mean over the rows."""
        if any(name not in gaps for name in names):
            return "-"
        means = [statistics.mean(gaps[name]["each"][seed] for name in names) for seed in seeds]
        return f"{statistics.mean(means):.1f} ± {statistics.stdev(means) if len(means) > 1 else 0.0:.1f}"

    rows = [[method, *(over([f"{method}: {way}"]) for way in ways)] for method in methods]
    rows.append(["mean of the methods", *(over([f"{method}: {way}" for method in methods]) for way in ways)])
    rows.append(["no-op", *[over(["no-op"])] * len(ways)])
    agree = {name: statistics.mean(each[name] for each in result["agreement"]) for name in result["agreement"][0]}
    told = " and ".join(f"{value:.2f} of the {name}" for name, value in agree.items())
    note = (
        f"{result['seeds']} seeds, {result['trials']} trials a method and seed, mean ± standard deviation. Over the "
        f"trials of a method, rank correlation with their gap: {told}. {measured_on(result)}."
    )
    return f"{markdown(['gap on the request', *ways], rows)}\n\n{note}"


def demo_once(result: dict[str, Any]) -> str:
    """What `make demo` prints, seed 0."""

    def cell(values: dict[str, float], key: str) -> str:
        error = f" ± {values['FT SE']:.1f}" if key == "FT AUC" else ""
        return f"{values[key]:.1f}{error}" if key in values else "-"

    columns = ("UA", "RA", "TA", "FT AUC", "gap", "seconds")
    rows = [[row, *(cell(values, key) for key in columns)] for row, values in result["runs"][0].items()]
    return f"{markdown(['model', *columns], rows)}\n\n200 images forgotten of 2,000. {measured_on(result)}."


def unlearn(result: dict[str, Any]) -> str:
    """The loop against a plain one, and AMUN against retraining."""
    rows, wholes = [], []
    for name, entry in result["networks"].items():
        seconds = entry["loop"]["seconds per epoch"]
        ratios = (entry["loop"][key] for key in ("ratio", "ratio, augmented"))
        rows.append([name, *(cell(value) for value in seconds.values()), *(f"{ratio:.2f}x" for ratio in ratios)])
        wholes.append([name, *(cell(entry["whole"][key]) for key in ("AMUN", "retrain", "ratio"))])
    names = next(iter(result["networks"].values()))["loop"]["seconds per epoch"]
    header = ["network", *(f"{name}, s" for name in names), "DataLoader / fit", "augmented"]
    note = f"CPU seconds, {result['images']} images; an epoch's are the best of the turns. {measured_on(result)}."
    whole = markdown(["network", "AMUN, s", "retraining, s", "retraining / AMUN"], wholes)
    return "\n\n".join([markdown(header, rows), whole, note])


def spread(value: dict[str, float | None]) -> str:
    """Of a no-op's seconds there is no mean, of a single model no deviation."""
    mean, deviation = value["mean"], value["deviation"]
    return "-" if mean is None else f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def compare(result: dict[str, Any]) -> str:
    """The methods beside retraining and the no-op, in both settings."""
    columns = ("UA", "RA", "TA", "FT AUC", "gap", "seconds")
    settings = {"with": "with D_R", "without": "D_F only"}
    parts = []
    for name, table in result["tables"].items():
        for setting, title in settings.items():
            rows = [
                [
                    line["title"],
                    *(spread(line[key]) for key in columns),
                    ", ".join(line["remarks"]),
                ]
                for line in table["tables"][setting].values()
                if line["UA"]["mean"] is not None
            ]
            parts += [f"{name}, {title}, {table['seeds']} seeds:", markdown(["method", *columns, "remark"], rows)]
    return "\n\n".join([*parts, f"Mean ± standard deviation over seeds. {measured_on(result)}."])


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
        f"Signal: median of {result['signal']['repeats']} turns; one thread in CPU time, two in wall time. Score: CPU "
        f"time, median of {score['repeats']} turns. {measured_on(result)}."
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
                error(row["held out"]),
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


HERE = Path(__file__).parent
# page -> name of the block and of the result -> its table
PAGES = {
    HERE / "README.md": {
        "search_step": search_step,
        "masked_sgd": masked_sgd,
        "search": search,
        "search summary": search_summary,
        "distances": distances,
        "forget": forget,
        "memory": memory,
        "demo": demo,
        "tuning": tuning,
        "unlearn": unlearn,
        "compare": compare,
        "rmia": rmia,
        "audit": audit,
        "references": references,
        "shadows": shadows,
        "kernels": kernels,
        "gpu/ops": gpu_ops,
        "gpu/search": gpu_search,
        "gpu/paper": gpu_paper,
    },
    HERE.parent / "README.md": {"demo": demo_once, "search in short": search_in_short},
}


def write_pages() -> None:
    for page, blocks in PAGES.items():
        text = page.read_text()
        for name, table in blocks.items():
            if not (result := read(name.removesuffix(" summary").removesuffix(" in short"))):
                continue
            new = f"<!-- {name} -->\n{table(result)}\n<!-- end -->"
            text, count = re.subn(rf"<!-- {name} -->.*?<!-- end -->", lambda _, new=new: new, text, flags=re.S)
            if count != 1:
                raise ValueError(f"{page} must have one block for {name}, got {count}")
        page.write_text(text)
