"""Distances of our own methods on many samples: with 80, as bench_search has them, a median is known to a few percent.

"pgd" stands for the published loop, whose distances it has: bench_search checks that. Networks of seed 1 of zoo.py.
"""

import argparse

import zoo
from common import write

from amun_ext import find_min_adversarial

SEARCHES = {
    "ddn, 10 steps": {"method": "ddn", "steps": 10},
    "ddn": {"method": "ddn"},
    "ddn, 20 steps": {"method": "ddn", "steps": 20},
    "ddn, 40 steps": {"method": "ddn", "steps": 40},
    "deepfool": {"method": "deepfool"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    tables = {}
    for name in zoo.NETWORKS:
        model = zoo.network(name, options.seed)
        for part, (images, labels) in zoo.images_of(name).items():
            inputs, labels = zoo.correct(model, images, labels, options.samples, seed=2000 + options.seed)
            base = find_min_adversarial(model, inputs, labels)
            rows = {}
            for row, settings in SEARCHES.items():
                result = find_min_adversarial(model, inputs, labels, **settings)
                ratios = result.distance / base.distance
                rows[row] = {
                    "found": float(result.found.float().mean()),
                    "gradients": float(result.grad_evals.float().mean()),
                    "mean ratio": float(result.distance.mean() / base.distance.mean()),
                    "median ratio": float(result.distance.median() / base.distance.median()),
                    "p95 ratio": float(result.distance.quantile(0.95) / base.distance.quantile(0.95)),
                    "closer": float((ratios < 1).float().mean()),
                }
                print(name, part, row, rows[row], flush=True)
            tables[f"{name}, {part}"] = {"gradients of pgd": float(base.grad_evals.float().mean()), "rows": rows}
            assert base.found.all(), (name, part)
    write("distances", {"samples": options.samples, "seed": options.seed, "tables": tables})


if __name__ == "__main__":
    main()
