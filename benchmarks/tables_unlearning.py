"""The tables of docs/benchmarks/unlearning.md and the demo's of the README."""

import statistics
from collections.abc import Sequence
from typing import Any

from table_format import cell, markdown, measured_on, spread

from amun_ext.unlearning import METHODS


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


def request(result: dict[str, Any]) -> str:
    columns = {"cpu": "CPU, s", "train MiB": "train, MiB", "forget MiB": "forget, MiB"}
    rows = [
        [f"{data}, {commit}", *(f"{row[key]:.1f}" if key == "cpu" else f"{row[key]:.0f}" for key in columns)]
        for data in ("fashion-mnist", "folder")
        for commit, row in result[data].items()
    ]
    return f"{markdown(['data, commit', *columns.values()], rows)}\n\n{measured_on(result)}."


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


ACCURACIES = ("UA", "RA", "TA", "FT AUC", "gap")


def distill(result: dict[str, Any], columns: Sequence[str] = (*ACCURACIES, "seconds")) -> str:
    """Out-of-fold distillation and AMUN beside retraining and the no-op, and what U-LiRA finds in them."""
    settings = {"with": "With D_R:", "without": "D_F only:"}
    parts = []
    for setting, title in settings.items():
        rows = [[row, *(spread(line[key]) for key in columns)] for row, line in result["tables"][setting].items()]
        parts += [title, markdown(["method", *columns], rows)]
    note = (
        f"{len(result['runs'])} requests, {result['repeats']} model(s) of each row; mean ± standard deviation over the"
    )
    note += " requests"
    if "u_lira" in result:
        rows = [
            [name, spread(row), spread(row["klom"], 2), cell(row["seconds"]), str(row["runs"])]
            for name, row in result["u_lira"].items()
        ]
        parts += [
            "What attacks find in shadows of the whole procedure:",
            markdown(["method", "U-LiRA AUC", "KLoM", "CPU s of a request", "shadows"], rows),
        ]
        note += ", of U-LiRA over the shadows; of KLoM the standard error over the samples"
    return "\n\n".join([*parts, f"{note}. {measured_on(result)}."])


def distill_untimed(result: dict[str, Any]) -> str:
    """The same, measured while other programs ran."""
    return distill(result, ACCURACIES)


def resnet(result: dict[str, Any]) -> str:
    """Distillation, AMUN and NegGrad+ on a ResNet-18, request by request."""
    runs = [*result["runs"].values()]
    digits = {"JS, forget": 3}

    def values(row: str, name: str) -> str:
        return " / ".join(f"{run[row][name]:.{digits.get(name, 1)}f}" for run in runs)

    columns = ("UA", "RA", "TA", "FT AUC", "gap", "JS, forget", "seconds")
    rows = [[row, *(values(row, name) for name in columns)] for row in runs[0]]
    note = (
        f"Seeds {' / '.join(result['runs'])}: a tenth of {result['images']:,} images, {result['test']:,} test images; "
        f"cross-fits of {result['folds']} folds; {result['retrained']} retrained models, one of each other row. CPU "
        f"seconds. {measured_on(result)}."
    )
    return f"{markdown(['method', *columns], rows)}\n\n{note}"


def folds(result: dict[str, Any]) -> str:
    """Distillation by cross-fits of different numbers of folds, and by reference models."""
    tables = result["tables"]
    numbers = [row.partition(":")[2].rstrip(")") for row in tables["with"] if row.startswith("Distill")]
    rows = [
        [
            folds,
            str(int(folds) - 1) if folds.isdigit() else "none of its own",
            *(spread(table[f"Distill (distill:{folds})"]["gap"]) for table in tables.values()),
        ]
        for folds in numbers
    ]
    note = f"{len(result['runs'])} requests, {result['repeats']} model(s) of each row; mean ± standard deviation"
    table = markdown(["folds", "trainings to prepare", "gap, with D_R", "gap, D_F only"], rows)
    return f"{table}\n\n{note} over the requests. {measured_on(result)}."


def methods(result: dict[str, Any]) -> str:
    """The field's methods with chosen options: the options, and the table of other requests where it was made."""
    chosen, rows = result["chosen"], []
    for method, each in chosen["methods"].items():
        options = {**each["options"]["recipe"], **each["options"]}
        shown = ", ".join(f"{name} {value}" for name, value in options.items() if name != "recipe")
        rows.append([METHODS[method].title, shown, str(each["tried"]), spread(each["gap"])])
    rows.append(["no-op", "-", "-", spread(chosen["no-op"])])
    parts = [markdown(["method", "options", "of", "gap where chosen"], rows)]
    if result["runs"]:
        columns = ("UA", "RA", "TA", "FT AUC", "gap", "seconds")
        table = [[row, *(spread(line[key]) for key in columns)] for row, line in result["table"].items()]
        told = f"{len(result['runs'])} other requests, {result['repeats']} models of each row:"
        parts += [told, markdown(["method", *columns], table)]
    note = f"Chosen on {len(chosen['requests'])} requests. Mean ± standard deviation over requests."
    return "\n\n".join([*parts, f"{note} {measured_on(result)}."])


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


def trades(result: dict[str, Any]) -> str:
    """Accuracies of networks trained with and without TRADES, under attack."""
    columns = [*next(iter(result["rows"].values()))]
    rows = [[training, *(spread(of[name]) for name in columns)] for training, of in result["rows"].items()]
    note = f"% of {result['images']} test images; {result['seeds']} networks of {result['epochs']} epochs each."
    return f"{markdown(['training', *columns], rows)}\n\n{note} {measured_on(result)}."
