"""What the tests of optimized_copy share: networks whose BatchNorm can be folded, and when two answer alike."""

import torch
from torch import nn

from amun_ext.models.optimized_copy import optimized_copy
from amun_ext.models.state import eval_mode

NORMS = nn.modules.batchnorm._BatchNorm
CHANNELS = 6


def randomised(model):
    """The model, with a BatchNorm that a fold must get right: no statistic or weight is 0 or 1."""
    for module in model.modules():
        if isinstance(module, NORMS):
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    return model


def images(count=4, channels=3, size=8, **where):
    return torch.rand(count, channels, size, size, **where)


def norms_in(model):
    return sum(isinstance(module, NORMS) for module in model.modules())


def answers(model, x):
    """Logits, and the gradient of a random mixture of them: the same one for each model of a test."""
    with eval_mode(model), torch.enable_grad():
        x = x.clone().requires_grad_()
        logits = model(x.clone())
        mixture = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits)
        (gradient,) = torch.autograd.grad(logits, x, mixture)
    return logits.detach(), gradient


def assert_alike(twin, model, x, logits=1e-5, gradient=0.02):
    """`gradient`: ReLUs on the brink may flip by rounding."""
    one, two = answers(twin, x), answers(model, x)
    assert (one[0] - two[0]).abs().max() <= logits * (two[0].max() - two[0].min())
    assert (one[1] - two[1]).norm() <= gradient * two[1].norm()


class Net(nn.Module):
    """Two convolutions with BatchNorm each; the tests add what must not be folded, and the second pair still can be.

    Tanh rather than ReLU: nothing flips by rounding, so gradients are held to a tight bound.
    """

    def __init__(self, channels=3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, CHANNELS, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(CHANNELS)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(CHANNELS)
        self.head = nn.Linear(CHANNELS, 5)

    def first(self, x):
        return self.bn1(self.conv1(x))

    def classify(self, x):
        x = torch.tanh(x)
        x = torch.tanh(self.bn2(self.conv2(x)))
        return self.head(x.mean((2, 3)))

    def forward(self, x):
        return self.classify(self.first(x))


def own(**methods):
    """A Net with other methods."""
    return type("Own", (Net,), methods)()


def check_copy(model, norms_left=0, **tolerance):
    """The copy is another model that answers alike, with so many norms left; it is returned."""
    model, x = randomised(model), images()
    twin = optimized_copy(model, x)
    assert twin is not model
    assert norms_in(twin) == norms_left
    assert_alike(twin, model, x, **{"gradient": 1e-5, **tolerance})
    return twin
