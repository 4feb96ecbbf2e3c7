"""Linear models whose training can be worked out by hand, and what methods need beside their sets."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.unlearning import METHODS


def needs(method: str, forget: Dataset, classes: int = 3) -> dict[str, object]:
    """Further arguments of `unlearn`: what a method trains on beside the sets, and what makes SSD change a model."""
    image, labels = forget[0][0], torch.arange(2 * classes) % classes
    others = torch.linspace(0.1, 0.9, len(labels) * image.numel()).view(-1, *image.shape)
    targets = torch.linspace(-1, 1, len(forget) * classes).view(-1, classes)
    inputs = {"targets": targets, "held_out": TensorDataset(others, labels)}
    return (
        {"selection": 0.01, "dampening": 0.01}
        if method == "ssd"
        else {name: inputs[name] for name in METHODS[method].inputs}
    )


class Recording(nn.Module):
    """A linear model of six inputs, after a convolution that leaves them as they are until it is trained.

    Remembers, through copies, which inputs it was trained on: all since the last was made.
    """

    seen: list[Tensor] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        nn.init.dirac_(self.conv.weight)
        self.linear = nn.Linear(6, 3)
        # All logits meet in the middle of the box, so that every input has an example inside it.
        self.linear.bias.data = -0.5 * self.linear.weight.data.sum(1)
        Recording.seen = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            Recording.seen.append(x.detach().clone())
        return self.linear(self.conv(x.view(-1, 1, 2, 3)).flatten(1))


def labelled(model: Recording, count: int) -> TensorDataset:
    """With the labels that the model gives them."""
    images = torch.rand(count, 6)
    return TensorDataset(images, model.linear(images).argmax(1))


def line(inputs: int = 2, classes: int = 2) -> nn.Linear:
    return nn.Linear(inputs, classes).double()


def samples(model: nn.Linear, count: int) -> TensorDataset:
    """Inputs in the unit box around the point where all logits meet, with the labels that the model gives them."""
    with torch.no_grad():
        model.bias.copy_(-0.5 * model.weight.sum(1))
    images = torch.rand(count, model.in_features, dtype=torch.float64)
    return TensorDataset(images, model(images).argmax(1))


class ByHand:
    """The weights of a linear model, and SGD on them: NumPy in float64, nothing of torch."""

    def __init__(self, model: nn.Linear, masks: dict[str, Tensor] | None = None, gradient_only: bool = False) -> None:
        self.weights = {name: weight.detach().numpy().copy() for name, weight in model.named_parameters()}
        self.momenta = {name: np.zeros_like(weight) for name, weight in self.weights.items()}
        self.masks = {} if masks is None else {name: mask.numpy() for name, mask in masks.items()}
        self.gradient_only = gradient_only

    def logits(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weights["weight"].T + self.weights["bias"]

    def residual(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Softmax less one-hot: the gradient of the cross-entropies with respect to the logits."""
        shifted = np.exp(self.logits(x) - self.logits(x).max(1, keepdims=True))
        return shifted / shifted.sum(1, keepdims=True) - np.eye(shifted.shape[1])[labels]

    def gradient(self, x: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Of the mean cross-entropy."""
        residual = self.residual(x, labels) / len(x)
        return {"weight": residual.T @ x, "bias": residual.sum(0)}

    def step(self, lr: float, x: np.ndarray, labels: np.ndarray, sign: int = 1, l1: float = 0.0) -> None:
        for name, grad in self.gradient(x, labels).items():
            weight, mask = self.weights[name], self.masks.get(name, np.True_)
            grad = sign * grad + l1 * np.sign(weight)
            if self.gradient_only:
                grad, mask = grad * mask, np.True_
            momentum = 0.9 * self.momenta[name] + grad + 0.05 * weight
            self.momenta[name] = np.where(mask, momentum, 0.0)
            self.weights[name] = np.where(mask, weight - lr * momentum, weight)

    def fgsm(self, x: np.ndarray, labels: np.ndarray, eps: float, low: float, high: float) -> np.ndarray:
        """Logits of the 8-bit images one step up the loss."""
        moved = np.clip(x + eps * np.sign(self.residual(x, labels) @ self.weights["weight"]), low, high)
        return self.logits(low + np.round((moved - low) / (high - low) * 255) / 255 * (high - low))


def arrays(data: TensorDataset) -> tuple[np.ndarray, np.ndarray]:
    images, labels = data.tensors
    return images.numpy(), labels.numpy()


def union(*sets: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([x for x, _ in sets]), np.concatenate([labels for _, labels in sets])
