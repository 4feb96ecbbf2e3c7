"""Do the tests find a fault? python python_tests/planted_faults.py [WORD ...]

Plants one after the other into a copy of the working tree, runs the tests of its room and says which has found it. With
words, only those in whose line one stands. Ends with status 1 when a fault is not found, or cannot be planted any more.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Fault(NamedTuple):
    kind: str
    file: str
    old: str
    new: str
    tests: str  # those of python_tests/test_{tests}.py, or a class of them


FAULTS = [
    Fault("sign: ascent descends", "training/loop.py", "-loss if each.ascend else loss", "loss", "methods"),
    Fault("dropped mask", "training/loop.py", "    if mask is None:\n", "    if True:\n", "training_loop"),
    Fault("kept gradient", "training/loop.py", "        optimizer.zero_grad()  #", "        pass  #", "training_loop"),
    Fault("swallowed NaN", "training/loop.py", "if not (math.isfinite(loss) and", "if False and (", "training_loop"),
    Fault("off by one", "recipe.py", "(epoch // int", "((epoch + 1) // int", "training_options"),
    Fault("forgotten state", "training/resume.py", 'self.order.set_state(tensors["order"])', "pass", "resume"),
    Fault("swallowed damage", "training/resume.py", "require(intact,", "require(True,", "resume"),
    Fault("wrong half", "search/postprocess.py", "middle = (low + high) / 2\n", "middle = high / 2\n", "search"),
    Fault("floor for round", "search/postprocess.py", ".round().clamp(0", ".floor().clamp(0", "search_options"),
    Fault("off by one", "saliency.py", "len(scores) - count + 1", "len(scores) - count", "saliency"),
    Fault("sign: absolute too early", "saliency.py", 'score == "sum_abs"', "score", "saliency"),
    Fault("forget set kept", "deletion/ids.py", "    kept[ids] = False\n", "", "deletion"),
    Fault("rows not left out", "unlearning/amun.py", "subset(forget, rows)", "forget", "unlearning"),
    Fault("swallowed check", "unlearning/amun.py", "require(wrong,", "require(True,", "unlearning_refused"),
    Fault("swallowed error", "parallel.py", "end.send(error)", "end.send(None)", "tuning_resume::TestWorkers"),
    Fault("sign", "metrics/lira.py", "/ 2 - np.log(spread)", "/ 2 + np.log(spread)", "lira"),
    Fault("off by one", "metrics/lira.py", "of.sum(axis=0) - 1", "of.sum(axis=0)", "lira"),
    Fault("ties count whole", "metrics/auc.py", "np.cumsum(outs) - outs / 2", "np.cumsum(outs)", "roc"),
    Fault("rounded up", "metrics/auc.py", "math.floor(fpr", "math.ceil(fpr", "roc"),
    Fault("strict for not strict", "metrics/rmia.py", "np.greater if strict", "np.greater_equal if strict", "rmia"),
    Fault("kernel: bound", "csrc/amun_math.h", "(x >= high) & (g > A(0))", "(x > high) & (g > A(0))", "search_rules"),
    Fault("kernel: sign", "csrc/amun_math.h", "maximize ? -grad : grad", "maximize ? grad : grad", "masked_sgd"),
]


def planted(fault: Fault, root: Path) -> bool:
    """Whether there is the one place for it, which is changed then."""
    path = root / (fault.file if fault.file.startswith("csrc") else f"amun_ext/{fault.file}")
    text = path.read_text()
    path.write_text(text.replace(fault.old, fault.new))
    return text.count(fault.old) == 1


def found_by(fault: Fault, root: Path) -> str:
    """The first test that fails; empty where none does."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    if fault.file.startswith("csrc"):
        built = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        subprocess.run(built, cwd=root, env=environment, check=True, capture_output=True)
    name, colons, part = fault.tests.partition("::")
    tests = f"python_tests/test_{name}.py{colons}{part}"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", tests]
    tested = subprocess.run(command, cwd=root, env=environment, check=False, capture_output=True, text=True)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", tested.stdout, re.MULTILINE)
    return failed[0].removeprefix("python_tests/") if tested.returncode == 1 and failed else ""


def main() -> int:
    chosen = [each for each in FAULTS if not sys.argv[1:] or any(word in " ".join(each) for word in sys.argv[1:])]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, fault in enumerate(chosen):
            root = Path(folder) / str(number)
            ignored = shutil.ignore_patterns(".*", "build", "__pycache__", "dist", "*.egg-info")
            shutil.copytree(ROOT, root, ignore=ignored)
            there = planted(fault, root)
            answer = found_by(fault, root) if there else ""
            missed += not answer
            print(f"{fault.kind}, {fault.file}: {answer or ('NOT FOUND' if there else 'NO PLACE FOR IT')}", flush=True)
            shutil.rmtree(root)
    print(f"{len(chosen) - missed} of {len(chosen)} found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
