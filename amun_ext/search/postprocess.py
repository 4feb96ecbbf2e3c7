"""Post-processing of examples: bring them closer, and round them to the 8-bit grid."""

import torch
from torch import Tensor

from amun_ext.search.loop import Search

# How far beyond the example the grid is searched: by these parts of the perturbation, one after the other. The large
# ones are for perturbations of less than a level, down to what float32 can tell from none.
NEAR = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 15.0, 30.0, 60.0, 120.0)
STRETCH = (*NEAR, 500.0, 2e3, 8e3, 3e4, 1.2e5)
BISECTIONS = 4  # between the first of them that will do and the one before


@torch.no_grad()
def refine(search: Search, passes: int) -> None:
    """Bisect the segment from input to example, batch by batch; every example that is kept has been evaluated."""
    table = search.table
    for rows in search.batches(search.found_rows()) if passes else ():
        x0, x = table.inputs[rows], table.images[rows]
        low, high = torch.zeros_like(table.eps[rows]), torch.ones_like(table.eps[rows])
        for _ in range(passes):
            middle = (low + high) / 2
            candidate = (x0 + middle.view(search.per_sample) * (x - x0)).clamp(*search.bounds)
            attack = search.evaluate(candidate, table.labels[rows])
            hit = attack.adversarial
            low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
            search.replace(rows[hit], candidate[hit], attack.predicted[hit])


@torch.no_grad()
def quantize(search: Search, levels: int) -> Tensor:
    """Replace every example by one whose elements are on the grid low + (high - low) * k / levels.

    Rounding moves an example, by as much as the whole perturbation where that is small. So it is stretched away from
    the input until its rounded form fools the model, and then as little as that takes. Returns the rows [M] for which
    none was found; theirs are left as they are.
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
    """The nearest grid points inside the box; for bounds (0, 1) exactly k / levels, as a loaded image has it."""
    low, high = bounds
    steps = ((x - low) * (levels / (high - low))).round().clamp(0, levels)
    return (steps / levels * (high - low) + low).clamp(low, high)  # rounding may lead out of it
