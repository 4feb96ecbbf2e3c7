"""The size of a batch when the caller gives none, and the CUDA graph of an iteration."""

import contextlib
import warnings
from types import SimpleNamespace

import pytest
import torch
from search_tools import Around, Linear, WithAScalarPart
from torch import Tensor, nn

from amun_ext.search import batch, graph


class FakeCuda:
    """As much of torch.cuda as a graph needs. What is launched during a capture is recorded, and does not run."""

    def __init__(self, monkeypatch, failing: bool = False) -> None:
        self.capturing, self.recorded, self.ran, self.failing, self.captures = False, 0, 0, failing, 0
        for name in ("Stream", "current_stream", "device", "stream", "CUDAGraph", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def launch(self) -> None:
        if self.capturing:
            self.recorded += 1
        else:
            self.ran += 1

    def Stream(self) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(wait_stream=lambda _other: None)

    current_stream = Stream

    def device(self, _device: torch.device) -> contextlib.nullcontext:
        return contextlib.nullcontext()

    stream = device

    def CUDAGraph(self) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(replay=self.replay)

    def replay(self) -> None:
        self.ran += self.recorded

    @contextlib.contextmanager
    def graph(self, _graph: object):
        self.captures, self.capturing, self.recorded = self.captures + 1, True, 0
        try:
            yield
        finally:
            self.capturing = False
        if self.failing:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")


class TestGraph:
    def test_on_a_cpu_it_is_the_function_itself(self) -> None:
        def iterate() -> None:
            pass

        assert graph.cuda_graphed(iterate, torch.device("cpu")) is iterate

    def test_every_call_is_one_iteration(self, monkeypatch) -> None:
        cuda = FakeCuda(monkeypatch)
        once = graph.cuda_graphed(cuda.launch, torch.device("cuda"))
        for calls in range(1, 3 * graph.WARM_UP + 2):
            once()
            assert cuda.ran == calls
        assert cuda.captures == 1

    def test_an_iteration_that_cannot_be_captured_runs_with_one_warning(self, monkeypatch) -> None:
        cuda = FakeCuda(monkeypatch, failing=True)
        once = graph.cuda_graphed(cuda.launch, torch.device("cuda"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for calls in range(1, 3 * graph.WARM_UP + 2):
                once()
                assert cuda.ran == calls
        assert [str(warning.message) for warning in caught] == [
            "the search continues without a CUDA graph: operation not permitted when stream is capturing"
        ]
        assert cuda.captures == 1

    def test_errors_of_the_model_are_raised(self, monkeypatch) -> None:
        cuda = FakeCuda(monkeypatch)

        def failing() -> None:
            cuda.launch()
            raise ZeroDivisionError

        once = graph.cuda_graphed(failing, torch.device("cuda"))
        with pytest.raises(ZeroDivisionError):
            once()


class TestBatchSize:
    """32 samples a thread, or what fits the cache: here a layer's output has 1,000 bytes, and its input as many."""

    @pytest.mark.parametrize(
        ("cache", "threads", "expected"),
        [(2**40, 1, 32), (2**40, 4, 128), (100_000, 4, 50), (100_000, 1, 32), (10_000, 4, 8), (0, 4, 8), (0, 1, 8)],
    )
    def test_bounds(self, monkeypatch, cache: int, threads: int, expected: int) -> None:
        monkeypatch.setattr(batch, "last_level_cache", lambda: cache)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        model = nn.Sequential(nn.Linear(4, 250), nn.ReLU(), nn.Linear(250, 3))
        assert batch.default_batch_size(model, torch.rand(8, 4)) == expected
        assert batch.default_batch_size(model.double(), torch.rand(8, 4).double()) == max(
            8, min(expected, cache // 4000)
        )

    def test_on_a_gpu(self) -> None:
        assert batch.default_batch_size(nn.Identity(), torch.empty(8, 4, device="meta")) == batch.ON_GPU

    @pytest.mark.parametrize("model", [Linear(3, 4), WithAScalarPart(Linear(3, 4))], ids=["one", "scalar"])
    def test_models_without_hooks(self, model: nn.Module) -> None:
        assert batch.default_batch_size(model, torch.rand(8, 4)) in range(8, 33)

    def test_leaves_no_trace(self) -> None:
        class Counting(Around):
            def __init__(self, inner: nn.Module, fails: bool) -> None:
                super().__init__(inner)
                self.register_buffer("calls", torch.zeros(()))
                self.fails = fails

            def forward(self, x: Tensor) -> Tensor:
                self.calls += 1
                if self.fails:
                    raise RuntimeError("no")
                return self.inner(x)

        for fails in (False, True):
            model = Counting(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), fails)
            with contextlib.suppress(RuntimeError):
                batch.default_batch_size(model, torch.rand(8, 4))
            assert not any(module._forward_hooks for module in model.modules())
            assert model.calls == model.inner[1].num_batches_tracked == 0

    def test_the_cache_of_this_machine(self, monkeypatch, tmp_path) -> None:
        assert batch.last_level_cache() >= 2**10
        for index, size in enumerate(["48K\n", "2M", "", "weird"]):
            (tmp_path / f"index{index}").mkdir()
            (tmp_path / f"index{index}" / "size").write_text(size)
        monkeypatch.setattr(batch, "Path", lambda _path: tmp_path)
        assert batch.last_level_cache() == 2 * 2**20
        monkeypatch.setattr(batch, "Path", lambda _path: tmp_path / "nothing")
        assert batch.last_level_cache() == batch.UNKNOWN_CACHE
