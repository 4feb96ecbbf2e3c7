"""The bound of theorem 4.1 on multinomial logistic regression: its constants by brute force, and no violation."""

import pytest
import torch
from torch.autograd.functional import hessian

from amun_ext.experiments.paper.theorem import features, loss, smoothness, terms, trained


def problem(samples: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(0, 3, (samples,))
    images = 0.3 * torch.rand(samples, 1, 2, 3)
    images[:, 0, 0] += 0.6 * torch.nn.functional.one_hot(labels, 3)
    return features(images), labels


def test_beta_bounds_the_hessian_everywhere() -> None:
    x, y = problem()
    beta = smoothness(x)
    for scale in (0.0, 0.1, 1.0, 10.0):
        theta = scale * torch.randn(3, x.shape[1], dtype=torch.float64)
        matrix = hessian(lambda weights: loss(weights, x, y), theta).reshape(theta.numel(), -1)
        assert float(torch.linalg.eigvalsh(matrix)[-1]) <= beta * (1 + 1e-9)
        assert float(torch.linalg.eigvalsh(matrix)[0]) >= -1e-9  # convex


@pytest.mark.same_inputs
def test_no_sample_violates_the_bound() -> None:
    x, y = problem()
    original = trained(x, y, 3)
    assert float(loss(original, x, y)) / len(x) < 0.01
    for row in range(10):
        adversarial = x[row].clone()
        adversarial[:-1] += 0.2 * torch.randn(len(adversarial) - 1, dtype=torch.float64)
        found = terms(x, y, row, original, adversarial, (int(y[row]) + 1) % 3)
        assert found["distance after"] <= found["bound of the proof"] + 1e-9 * found["distance before"]
        assert found["L delta"] > 0
