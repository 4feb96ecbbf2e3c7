"""`amun demo` over several seeds: how close each form of AMUN comes to retraining, mean and standard deviation."""

import argparse
import math
import statistics

import torch
from common import write

from amun_ext.experiments import demo

COLUMNS = ("UA", "RA", "TA", "FT AUC", "FT SE", "gap", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as amun demo does
    runs = []
    for seed in range(options.seeds):
        report, *_ = demo.run(seed)
        print(f"seed {seed}\n{report.to_text()}\n", flush=True)
        runs.append(
            {
                row: {column: values[column] for column in COLUMNS if not math.isnan(values[column])}
                for row, values in report.rows.items()
            }
        )

    def over_seeds(row: str, column: str) -> dict[str, float]:
        values = [run[row][column] for run in runs]
        return {"mean": statistics.mean(values), "std": statistics.stdev(values)}

    def from_retrain(row: str, column: str) -> float:
        return statistics.mean(abs(run[row][column] - run[demo.RETRAIN][column]) for run in runs)

    table = {row: {column: over_seeds(row, column) for column in values} for row, values in runs[0].items()}
    distance = {row: {column: from_retrain(row, column) for column in ("UA", "TA", "FT AUC")} for row in runs[0]}
    write("demo", {"seeds": options.seeds, "table": table, "distance from retrain": distance, "runs": runs})


if __name__ == "__main__":
    main()
