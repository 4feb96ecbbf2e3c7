"""One iteration as one CUDA graph: its hundreds of launches cost the host a single one."""

import warnings
from collections.abc import Callable

import torch

WARM_UP = 3  # iterations before the capture: libraries choose and set up their kernels in them


def repeated(iterate: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What does as `iterate` does, each time it is called: on a GPU by replaying its launches, elsewhere itself.

    `iterate` must work in place on tensors that stay where they are. Where it cannot be captured, because the model
    looks at a result from the host, say, it goes on as it is, with a warning.
    """
    if device.type != "cuda":
        return iterate
    graph: torch.cuda.CUDAGraph | None = None
    calls = 0

    def once() -> None:
        nonlocal graph, calls
        calls += 1
        if calls == WARM_UP + 1:
            graph = _captured(iterate, device)  # a capture runs nothing
        if graph is not None:
            graph.replay()
        elif calls <= WARM_UP:
            _beside(iterate, device)
        else:
            iterate()

    return once


def _beside(iterate: Callable[[], None], device: torch.device) -> None:
    """On a stream of its own, as a capture will."""
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            iterate()
        torch.cuda.current_stream().wait_stream(stream)


def _captured(iterate: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph | None:
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                iterate()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            warnings.warn(f"the search goes on without a CUDA graph: {reason}", RuntimeWarning, stacklevel=2)
            torch.cuda.synchronize()
            return None
    return graph
