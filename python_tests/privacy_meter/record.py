"""Records what privacy-meter answers to random inputs, in recorded.npz: python record.py CLONE

CLONE is one of github.com/privacytrustlab/ml_privacy_meter (MIT licence). Of the code of the RMIA paper
(research/2024_rmia, at PUBLISHED) the signals and scores, of version 2 (modules/mia, at V2) the score; the functions
are run as they are.
"""

import ast
import sys
import tempfile
from pathlib import Path
from subprocess import run
from types import SimpleNamespace
from typing import Any, Optional

import numpy as np
import torch
from scipy.stats import trim_mean

PUBLISHED, V2 = "d32734161a3395211fe5f3cd461932290b1fafbe", "e384af8"
SAMPLES, MODELS, CLASSES, AUGMENTATIONS = 120, 8, 10, 3
OPTIONS = {
    "softmax": {},
    "taylor": {"taylor_n": 4},
    "soft-margin": {"taylor_m": 0.6},
    "taylor-soft-margin": {"taylor_m": 0.6, "taylor_n": 4},
    "log-logit-scaling": {},
}


def functions(clone: str, commit: str, path: str, *names: str, **known: Any) -> SimpleNamespace:
    """Functions of a file in the clone, without what the file imports."""
    told = run(["git", "-C", clone, "show", f"{commit}:{path}"], capture_output=True, text=True, check=True).stdout
    found = [node for node in ast.parse(told).body if isinstance(node, ast.FunctionDef) and node.name in names]
    namespace = {"torch": torch, "np": np, **known}
    exec(compile(ast.Module(found, []), path, "exec"), namespace)
    return SimpleNamespace(**{name: namespace[name] for name in names})


def published(clone: str) -> SimpleNamespace:
    of_signals = functions(
        clone, PUBLISHED, "research/2024_rmia/signals.py", "factorial", "get_taylor", "convert_signals"
    )
    of_main = functions(
        clone,
        PUBLISHED,
        "research/2024_rmia/main.py",
        "aggregate_signals",
        trim_mean=lambda values, proportiontocut, axis: torch.from_numpy(
            trim_mean(values.numpy(), proportiontocut, axis)
        ),
        tqdm=lambda each, desc: each,
        str2bool=lambda value: value == "True",
        log_dir=tempfile.mkdtemp(),
        model_index=0,
    )
    return SimpleNamespace(**vars(of_signals), **vars(of_main))


def main(clone: str) -> None:
    random = np.random.default_rng(0)
    code, made = published(clone), {}
    logits = torch.from_numpy(2.0 * random.normal(size=(SAMPLES, CLASSES)))
    labels = torch.from_numpy(random.integers(CLASSES, size=SAMPLES))
    made |= {"logits": logits, "labels": labels}
    for metric, extra in OPTIONS.items():
        made[f"signal {metric}"] = code.convert_signals(logits, labels, metric, 2.0, extra)

    membership = torch.zeros(MODELS, SAMPLES, dtype=torch.bool)
    for sample in range(SAMPLES):  # in half of the models each
        membership[torch.from_numpy(random.permutation(MODELS)[: MODELS // 2].copy()), sample] = True
    target = torch.from_numpy(random.uniform(0.05, 1, size=(SAMPLES, AUGMENTATIONS)))
    references = torch.from_numpy(random.uniform(0.05, 1, size=(MODELS, SAMPLES, AUGMENTATIONS)))
    population = torch.from_numpy(random.permutation(SAMPLES)[:50].copy())
    made |= {"membership": membership, "target": target, "references": references, "population": population}
    everything = torch.arange(SAMPLES)
    for name, offline, trim, augmentation in (
        ("online", "False", 0.0, "none"),
        ("online, trimmed", "False", 0.3, "none"),
        ("offline", "True", 0.0, "none"),
        ("online, augmented", "False", 0.0, "augmented"),
    ):
        told = {
            "num_ref_models": MODELS,
            "nb_augmentation": AUGMENTATIONS,
            "top_k": -1,
            "offline": offline,
            "offline_a": 0.3,
            "augmentation": augmentation,
            "proportiontocut": trim,
            "gamma": 2.0,
            "report_log": "",
        }
        answer = code.aggregate_signals(
            "sm_taylor_softmax_relative",
            torch.zeros(SAMPLES),
            target,
            everything,
            membership,
            references,
            population,
            {"audit": told},
        )
        made[f"score {name}"] = np.asarray(answer[0])[0]

    newer = functions(clone, V2, "modules/mia/attacks/rmia.py", "get_out_ref_signals", "run_rmia", Optional=Optional)
    inside = ~np.isin(np.arange(SAMPLES), population.numpy())  # version 2 has a population of its own
    rows, others = inside.nonzero()[0], (~inside).nonzero()[0]
    signals, memberships = references[:, :, 0].numpy().T, membership.numpy().T
    made["score version 2"] = newer.run_rmia(
        target[rows, 0].numpy(), signals[rows], memberships[rows], target[others, 0].numpy(), signals[others], 0.3
    )
    np.savez_compressed(
        Path(__file__).with_name("recorded.npz"), **{name: np.asarray(value) for name, value in made.items()}
    )


if __name__ == "__main__":
    main(sys.argv[1])
