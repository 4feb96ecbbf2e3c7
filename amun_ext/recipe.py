"""The hyperparameters of a training. No torch is imported here: the command line shows these names and numbers."""

import math
import re
import reprlib
from dataclasses import dataclass

from amun_ext.validation import check_integer, is_number, require

BATCH_NORM = ("train", "frozen", "eval")
OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = (None, "bfloat16", "float16")


@dataclass(frozen=True)
class Trades:
    """norm: of the ball of radius `eps` around each input in [0, 1] that is searched in `steps` of length `step`."""

    norm: str
    eps: float
    step: float
    steps: int = 10
    beta: float = 6.0  # weight of the second term


# The settings that are usual for CIFAR-10. Those of the paper's table 5 are not published.
TRADES = {"trades-linf": Trades("linf", 8 / 255, 2 / 255), "trades-l2": Trades("l2", 0.5, 0.1)}


@dataclass(frozen=True)
class Recipe:
    """The default is SGD with momentum, as in all the published experiments (paper, appendix C).

    `optimizer` "adamw" is torch.optim.AdamW with betas (momentum, 0.999); its decoupled weight decay is usually larger
    (0.05 to 0.1 for a ViT). In the first `warmup_epochs` the learning rate rises linearly, step by step, to `lr` at the
    last of these steps; then the schedule begins (as after a SequentialLR). `batch_norm` is "train" (the published
    choice: batch statistics, running statistics are updated), "frozen" (running statistics, not updated; dropout on),
    or "eval" (the whole model in eval mode, dropout off). `precision` is that of autocast, None for the model's own;
    "float16" scales the loss. A batch is computed in `accumulation_steps` pieces, which saves memory; BatchNorm then
    has the statistics of a piece. `robust` adds the term of TRADES against adversarial examples.
    `spectral_norm` is the largest operator norm of a convolution or dense layer: larger ones are scaled down to it
    after each step (see `amun_ext.lipschitz`).
    """

    epochs: int
    lr: float
    schedule: str = "constant"  # "constant", "cosine", or "step:N": a tenth every N epochs
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: bool = False  # random crop (padding 4) and horizontal flip
    batch_norm: str = "train"
    precision: str | None = None
    channels_last: bool = False  # left out on a CPU where torch would crash, see docs/decisions.md
    accumulation_steps: int = 1
    optimizer: str = "sgd"
    warmup_epochs: int = 0
    robust: str | None = None  # a name in TRADES
    spectral_norm: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("accumulation_steps", 1), ("warmup_epochs", 0)):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), least))
        for name in ("lr", "weight_decay", "momentum"):
            value = getattr(self, name)
            fits = is_number(value) and math.isfinite(value) and value >= 0
            require(fits, name, "finite and not negative", repr(value))
            object.__setattr__(self, name, float(value))
        for name in ("augment", "channels_last"):
            require(isinstance(getattr(self, name), bool), name, "True or False", repr(getattr(self, name)))
        require(self.momentum < 1, "momentum", "less than 1", self.momentum)
        require(self.batch_norm in BATCH_NORM, "batch_norm", f"one of {BATCH_NORM}", repr(self.batch_norm))
        require(self.precision in PRECISIONS, "precision", f"one of {PRECISIONS}", repr(self.precision))
        require(self.optimizer in OPTIMIZERS, "optimizer", f"one of {OPTIMIZERS}", repr(self.optimizer))
        require(self.robust in (None, *TRADES), "robust", f"None or one of {tuple(TRADES)}", repr(self.robust))
        limit = self.spectral_norm
        positive = limit is None or (is_number(limit) and 0 < limit < math.inf)
        require(positive, "spectral_norm", "None, or positive and finite", repr(limit))
        expected = f"fewer than the {self.epochs} epochs"
        require(self.warmup_epochs < self.epochs, "warmup_epochs", expected, self.warmup_epochs)
        self.lr_factor(self.warmup_epochs)

    def lr_factor(self, epoch: int, done: float = 1.0) -> float:
        """The learning rate of an epoch (from 0 on), as a fraction of `lr`; in warm-up after a part `done` of it."""
        if epoch < self.warmup_epochs:
            return (epoch + done) / self.warmup_epochs
        epoch, epochs = epoch - self.warmup_epochs, self.epochs - self.warmup_epochs
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * epoch / epochs)) / 2
        kind, _, every = str(self.schedule).partition(":")
        known = kind == "step" and re.fullmatch("0*[1-9][0-9]{0,8}", every)
        require(bool(known), "schedule", '"constant", "cosine" or "step:N"', reprlib.repr(self.schedule))
        return float(0.1 ** (epoch // int(every)))


# The published recipe for a ResNet-18 on CIFAR-10 (paper, appendix C; authors' train_vanilla.py).
PAPER_TRAINING = Recipe(epochs=200, lr=0.1, schedule="step:40", augment=True)

TRAINING = Recipe(epochs=30, lr=0.05, schedule="cosine", batch_size=64)  # of amun train and of the demo
FINE_TUNING = Recipe(epochs=10, lr=0.03, schedule="cosine")  # of amun forget and of the demo
TUNING = Recipe(epochs=10, lr=0.01)  # of amun tune

# By name on the command line. "fast" is the same network for one epoch in ten: large batches, a warm-up to a large
# learning rate, half precision; on a GPU the images stay on it.
RECIPES = {
    "paper": PAPER_TRAINING,
    "fast": Recipe(
        epochs=20,
        lr=0.4,
        schedule="cosine",
        warmup_epochs=4,
        batch_size=512,
        augment=True,
        precision="bfloat16",
        channels_last=True,
    ),
}
