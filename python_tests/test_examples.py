"""The scripts of examples/ run as they stand, and say what they promise."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amun_ext import AdversarialSet, data

EXAMPLES = Path(__file__).parents[1] / "examples"
EXPECTED = {  # script -> what it prints at least
    "closest_examples.py": r"found 100 of 100, median L2 distance 0\.\d+",
    "image_folder.py": r"FT AUC",
    "own_search_rule.py": r"back_and_forth: found \d+ of 100, median L2 distance 0\.\d+",
    "salun_masked_sgd.py": r"weights outside the mask that changed: 0\n",
    "several_processes.py": r"AMUN +\d",
    "sharded_model.py": r"AMUN\+SalUn +\d",
    "transformers_vit.py": r"an object with logits \[120, 10\]",
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(EXPECTED)


@pytest.mark.same_inputs  # images of which an untrained network finds an example
@pytest.mark.parametrize("name", EXPECTED)
def test_example_runs(name, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [image_folder(tmp_path / "images"), "--epochs", "2"] if name == "image_folder.py" else []
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert re.search(EXPECTED[name], capsys.readouterr().out)
    if name == "closest_examples.py":
        assert len(AdversarialSet.load("examples.safetensors")) == 100
    if name == "image_folder.py":
        assert {path.name for path in Path("audit").iterdir()} == {"audit.json", "audit.md", "audit.html"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("several_processes.py", {"shared-examples.safetensors", "unlearned.safetensors"}),
        ("sharded_model.py", {"original.safetensors", "unlearned.safetensors"}),
    ],
)
def test_two_processes_share_the_work(name: str, written: set[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    output = subprocess.run(
        [*command, str(EXAMPLES / name)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert output.returncode == 0, output.stderr
    assert len(re.findall(EXPECTED[name], output.stdout)) == 1  # printed by the first rank
    assert {path.name for path in tmp_path.iterdir()} == written


@pytest.mark.slow
def test_threads_of_a_destroyed_group_end(tmp_path) -> None:
    """One that lives while Python ends can abort the process."""
    script = """
import os, sys, torch
from amun_ext import unlearn
from torch import distributed
distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
torch.optim.SGD([torch.ones(1)], lr=1.0)  # imports torch's compiler
distributed.destroy_process_group()
print(*(open(f"/proc/self/task/{each}/comm").read().strip() for each in os.listdir("/proc/self/task")))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "store")]
    output = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert output.returncode == 0, output.stderr
    assert "gloo" not in output.stdout


def image_folder(root: Path) -> str:
    """Forty training and twenty test images of two classes."""
    image = pytest.importorskip("PIL.Image")
    splits = data.load("digits")
    for part, dataset, count in (("train", splits.train, 20), ("test", splits.test, 10)):
        images, labels = dataset.tensors
        for label in (0, 1):
            folder = root / part / f"class-{label}"
            folder.mkdir(parents=True)
            for number, pixels in enumerate(images[labels == label][:count, 0]):
                image.fromarray((pixels * 255).to(torch.uint8).numpy()).save(folder / f"{number:02}.png")
    return str(root)
