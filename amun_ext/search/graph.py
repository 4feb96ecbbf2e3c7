"""One iteration of a search as a CUDA graph, which the host replays with a single launch."""

import warnings
from collections.abc import Callable

import torch

WARM_UP = 3  # iterations before the capture, in which libraries choose and set up their kernels


def cuda_graphed(iterate: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """`iterate`, which on a GPU is captured as a graph and then replayed.

    It must work in place on tensors that keep their memory. If it cannot be captured, for example because the model
    reads a result on the host, it runs without a graph, with a warning.
    """
    if device.type != "cuda":
        return iterate
    graph: torch.cuda.CUDAGraph | None = None
    calls = 0

    def run() -> None:
        nonlocal graph, calls
        calls += 1
        if calls == WARM_UP + 1:
            graph = _capture(iterate, device)  # does not run it
        if graph is not None:
            graph.replay()
        elif calls <= WARM_UP:
            _on_side_stream(iterate, device)
        else:
            iterate()

    return run


def _on_side_stream(iterate: Callable[[], None], device: torch.device) -> None:
    """On another stream, as in a capture."""
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            iterate()
        torch.cuda.current_stream().wait_stream(stream)


def _capture(iterate: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph | None:
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                iterate()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            warnings.warn(f"the search continues without a CUDA graph: {reason}", RuntimeWarning, stacklevel=2)
            torch.cuda.synchronize()
            return None
    return graph
