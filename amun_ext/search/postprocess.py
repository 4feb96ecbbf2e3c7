"""Post-processing of examples: bisection towards the input, and rounding to the 8-bit grid."""

import torch
from torch import Tensor

from amun_ext.search.loop import Search

# By how much of the perturbation an example is moved on before it is rounded. The large parts are for perturbations
# below a level, down to the resolution of float32.
NEAR = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 15.0, 30.0, 60.0, 120.0)
STRETCH = (*NEAR, 500.0, 2e3, 8e3, 3e4, 1.2e5)
BISECTIONS = 4  # between the first part whose rounded example is adversarial and the part before


@torch.no_grad()
def bisect_to_input(search: Search, passes: int, nearest: float = 0.0) -> None:
    """Bisect the segment from input to example, from its part `nearest` on, batch by batch; every example that is kept
    has been evaluated."""
    table = search.table
    for rows in search.batches(search.found_rows()) if passes else ():
        x0, x = table.inputs[rows], table.images[rows]
        low, high = torch.full_like(table.eps[rows], nearest), torch.ones_like(table.eps[rows])
        for _ in range(passes):
            middle = (low + high) / 2
            candidate = (x0 + middle.view(search.per_sample) * (x - x0)).clamp(*search.bounds)
            attack = search.evaluate(candidate, table.labels[rows])
            hit = attack.adversarial
            low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
            search.replace(rows[hit], candidate[hit], attack.predicted[hit])


@torch.no_grad()
def round_to_grid(search: Search, levels: int) -> Tensor:
    """Replace every example by one whose elements are on the grid low + (high - low) * k / levels.

    Rounding may move a small perturbation back across the boundary. So the perturbation is lengthened until the rounded
    example is adversarial, then bisected. Returns the rows [M] without such an example, which are unchanged.
    """
    table, left = search.table, []
    for rows in search.batches(search.found_rows()):
        x0, delta, labels = table.inputs[rows], table.images[rows] - table.inputs[rows], table.labels[rows]

        def rounded(part: Tensor, x0: Tensor = x0, delta: Tensor = delta) -> Tensor:
            return on_grid(x0 + (1 + part).view(search.per_sample) * delta, search.bounds, levels)

        low = high = torch.zeros_like(table.eps[rows])
        hit, kept = torch.zeros_like(rows, dtype=torch.bool), torch.zeros_like(rows, dtype=torch.bool)
        for part in STRETCH:
            low, high = torch.where(hit, low, high), torch.where(hit, high, torch.full_like(high, part))
            hit |= search.evaluate(rounded(high), labels).adversarial
            if hit.all():
                break
        for step in range(BISECTIONS + 1):
            middle = (low + high) / 2 if step else high
            candidate = rounded(middle)
            attack = search.evaluate(candidate, labels)
            good = attack.adversarial & hit
            low, high = torch.where(good, low, middle), torch.where(good, middle, high)
            closer = good & (~kept | ((candidate - x0).flatten(1).norm(dim=1) <= table.distance[rows]))
            search.replace(rows[closer], candidate[closer], attack.predicted[closer])
            kept |= closer
        left.append(rows[~kept])
    return torch.cat(left) if left else search.found_rows()


def on_grid(x: Tensor, bounds: tuple[float, float], levels: int) -> Tensor:
    """The nearest grid points inside the box; for bounds (0, 1) exactly k / levels, as in a loaded image."""
    low, high = bounds
    steps = ((x - low) * (levels / (high - low))).round().clamp(0, levels)
    return (steps / levels * (high - low) + low).clamp(low, high)  # rounding may leave the box
