"""What manifest, ledger and record cost: their share of the processor time of `amun forget`, with one epoch and all.

On the embedded images, and on Fashion-MNIST (the Debian package dataset-fashion-mnist).
"""

import importlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import write

from amun_ext import cli
from amun_ext.deletion.request import warm_up

# module -> functions that read, check or write what a request is known by, as the module calls them
BOOKKEEPING = {
    "amun_ext.cli.loading": ["aligned", "training_data"],
    "amun_ext.cli.forget": ["file_digest", "finished_request"],
    "amun_ext.deletion.request": ["aligned", "training_data", "fingerprint", "without", "keys_of"],
    "amun_ext.deletion.ledger": ["text_beside", "entries", "append", "line_hash"],
    "amun_ext.deletion.results": ["file_digest", "write_json", "write_text", "_record", "_entries"],
}
REQUESTS = {
    "fashion-mnist-mini, 10 epochs": ("fashion-mnist-mini", "--fraction 0.1"),
    "fashion-mnist-mini, 1 epoch": ("fashion-mnist-mini", "--fraction 0.1 --epochs 1"),
    "fashion-mnist, 1 epoch": ("fashion-mnist", "--fraction 0.01 --duplicate-distance 0 --epochs 1 --batch-size 64"),
}


class Clock:
    """The seconds inside the wrapped functions, each once where one calls another."""

    def __init__(self) -> None:
        self.seconds, self.inside = 0.0, False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            if self.inside:
                return function(*arguments, **options)
            self.inside, start = True, time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                self.inside = False
                self.seconds += time.process_time() - start

        return timed


def main() -> None:
    torch.set_num_threads(1)
    warm_up()
    clock, table = Clock(), {}
    for module, names in BOOKKEEPING.items():
        for name in names:
            setattr(importlib.import_module(module), name, clock.wrap(getattr(importlib.import_module(module), name)))
    with tempfile.TemporaryDirectory() as folder:
        for number, (title, (data, options)) in enumerate(REQUESTS.items()):
            model = Path(folder) / f"{data}.safetensors"
            if not model.exists():
                train = f"train --data {data} --model small-cnn --epochs 1 --quiet --out {model}"
                assert cli.main(train.split()) == 0
            clock.seconds, start = 0.0, time.process_time()
            forget = f"forget --data {data} --model {model} {options} --quiet --out {folder}/{number}"
            assert cli.main(forget.split()) in (0, 3)
            whole = time.process_time() - start
            table[title] = {"bookkeeping": clock.seconds, "forget": whole, "percent": 100 * clock.seconds / whole}
            print(title, table[title], flush=True)
    write("bookkeeping", {"table": table})


if __name__ == "__main__":
    main()
