"""Unlearn a model of which each process holds a part of every weight (FSDP2).

    torchrun --nproc-per-node 2 examples/sharded_model.py
    python examples/sharded_model.py                              # one process, which holds them whole

Training runs out of memory first, because it holds gradients and momentum beside the weights. The search needs no more
than the weights, and the whole of them.
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from amun_ext import data, evaluate, find_min_adversarial, models, unlearn
from amun_ext.deletion import forget_ids, split
from amun_ext.training import DataPart, Pass, Recipe, fit

if dist.is_torchelastic_launched():
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
first = not dist.is_initialized() or dist.get_rank() == 0
device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
if device != "cpu":
    torch.cuda.set_device(device)


def network(checkpoint: str | None = None, *, sharded: bool = True) -> nn.Module:
    torch.manual_seed(0)  # the same weights on every rank
    model = models.build("small-cnn", num_classes=10, in_channels=1, width=8).to(device)
    if sharded and dist.is_initialized():
        for layer in model.children():  # which is whole while it is used; of a transformer, its blocks
            if [*layer.parameters()]:
                fully_shard(layer)
        fully_shard(model)
    if checkpoint is not None:
        models.load_checkpoint(checkpoint, model)
    return model


splits = data.load("digits")
forget, retain = split(splits.train, forget_ids(len(splits.train), fraction=0.1, seed=0))
model = network()
fit(model, [Pass([DataPart(splits.train)])], Recipe(epochs=4, lr=0.1))
models.save_checkpoint("original.safetensors", model, {})  # by all ranks: the first writes the whole weights

examples = find_min_adversarial(network("original.safetensors", sharded=False), forget, method="ddn")
unlearn(model, forget, retain, adversarial=examples, mask=0.5, recipe=Recipe(2, 0.03), copy=False)
models.save_checkpoint("unlearned.safetensors", model, {})

rows = {"no-op": network("original.safetensors"), "AMUN+SalUn": model}
report = evaluate(rows, forget=forget, retain=retain, test=splits.test, baseline=None)  # all ranks make the forwards
if first:
    print(report.to_text())
if dist.is_initialized():
    dist.destroy_process_group()
