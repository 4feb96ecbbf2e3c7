"""The scripts of examples/ run as they stand, and say what they promise."""

import re
import runpy
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
