"""Run benchmarks and write the tables of README and docs from their results: python benchmarks/run.py [name ...]"""

import subprocess
import sys
from pathlib import Path

import tables

HERE = Path(__file__).parent
BENCHMARKS = (
    *("search_step", "masked_sgd", "search", "distances", "memory", "forget", "demo"),
    *(
        "tuning",
        "unlearn",
        "compare",
        "distill",
        "unlearning_methods",
        "resnet",
        "copies",
        "chain",
        "bookkeeping",
        "plan",
        "million",
        "micro_batches",
        "rmia",
        "audit",
        "references",
        "training_step",
        "reference_precision",
        "shadows",
    ),
)

if __name__ == "__main__":
    names = sys.argv[1:] or BENCHMARKS
    if unknown := set(names) - set(BENCHMARKS) - {"tables"}:
        sys.exit(f"benchmarks must be among {BENCHMARKS} or tables, got {sorted(unknown)}")
    for name in names:
        if name != "tables":
            subprocess.run([sys.executable, HERE / f"bench_{name}.py"], check=True)
    tables.write_pages()
