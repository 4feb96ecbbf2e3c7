"""Search and unlearn in several processes, on one machine or on many.

    python examples/several_processes.py                          # one process
    torchrun --nproc-per-node 2 examples/several_processes.py     # two, which share the work
    sbatch examples/slurm.sh                                      # two machines of a Slurm cluster

Every process, a rank of the group, runs this script and ends with the same weights.
"""

import os

import torch
import torch.distributed as dist

from amun_ext import data, evaluate, find_min_adversarial, models, unlearn
from amun_ext.deletion import forget_ids, split
from amun_ext.training import DataPart, Pass, Recipe, fit

if dist.is_torchelastic_launched():
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
first = not dist.is_initialized() or dist.get_rank() == 0
device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
if device != "cpu":
    torch.cuda.set_device(device)

# The same weights and data on every rank.
torch.manual_seed(0)
splits = data.load("digits")
original = models.build("small-cnn", num_classes=10, in_channels=1, width=8).to(device)
fit(original, [Pass([DataPart(splits.train)])], Recipe(epochs=5, lr=0.1, batch_size=64))

# Each rank searches its block of the forget set, and takes its part of each batch of the fine-tuning.
forget, retain = split(splits.train, forget_ids(len(splits.train), fraction=0.1, seed=0))
examples = find_min_adversarial(original, forget, method="ddn", out="shared-examples.safetensors")
unlearned = unlearn(original, forget, retain, adversarial=examples, include_forget=False, recipe=Recipe(5, 0.03))

if first:
    rows = {"no-op": original, "AMUN": unlearned}
    print(evaluate(rows, forget=forget, retain=retain, test=splits.test, baseline=None).to_text())
    models.save_checkpoint("unlearned.safetensors", unlearned, {})
if dist.is_initialized():
    dist.destroy_process_group()
