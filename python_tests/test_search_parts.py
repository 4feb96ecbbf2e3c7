"""The parts of the search: rules in Python, the CUDA graph, batch sizes, the result as a data set, transfer."""

import contextlib
import dataclasses
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from search_tools import (
    Around,
    Linear,
    Pairs,
    Task,
    WithAScalarPart,
    check_guarantees,
    every_method,
    may_run_out,
    plain_ddn,
    trained_net,
    unit,
)
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext import AdversarialSet, InputError, find_min_adversarial
from amun_ext.search import Iterate, batch, graph
from amun_ext.search import find as search_module


class TestPythonRules:
    @may_run_out
    def test_a_few_lines_are_a_search(self, few: Task) -> None:
        def signs(step: Iterate) -> Tensor:
            return step.x + 0.01 * step.grad.sign() * (~step.adversarial).view(-1, 1, 1, 1)

        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method=signs, steps=60)
        assert result.found.float().mean() > 0.9
        check_guarantees(model, images, labels, result)
        ddn, own = (find_min_adversarial(model, images, labels, method=method) for method in ("ddn", plain_ddn))
        assert own.distance.median() <= 1.2 * ddn.distance.median()

    @may_run_out
    def test_what_a_rule_sees(self, task: Task, monkeypatch) -> None:
        """Among others its own numbers, sample by sample, although others leave the batch."""
        model, images, labels = task
        count, calls, kept = len(images), torch.zeros(len(images), dtype=torch.int32), torch.zeros(len(images))
        closest = torch.full((count,), math.inf)
        lives = torch.arange(count) % 9 + 2  # calls until a sample is ended

        def rule(step: Iterate) -> Tensor:
            sample = step.sample
            assert torch.equal(step.step, calls[sample])
            assert torch.equal(step.eps, kept[sample])
            assert torch.equal(step.inputs, images[sample])
            assert step.steps == 8
            logits = model(step.x)
            assert torch.equal(step.adversarial, logits.argmax(1) != labels[sample])
            others = logits.scatter(1, labels[sample][:, None], -math.inf).amax(1)
            left = logits.gather(1, labels[sample][:, None])[:, 0] - others
            torch.testing.assert_close(step.margin, left, rtol=1e-3, atol=1e-3)
            distance = (step.x - step.inputs).flatten(1).norm(dim=1).masked_fill(~step.adversarial, math.inf)
            closest[sample] = torch.minimum(closest[sample], distance)
            torch.testing.assert_close(step.best, closest[sample])
            calls[sample] += 1
            kept[sample] = torch.rand(len(sample))
            step.eps[:] = kept[sample]
            following = step.x + 0.05 * step.grad.sign()
            following[calls[sample] == lives[sample]] = torch.nan
            return following

        monkeypatch.setattr(search_module, "CHUNK_BYTES", 40 * images[0].nbytes)
        result = find_min_adversarial(model, images, labels, method=rule, steps=8, batch_size=16, optimize_model=False)
        assert torch.equal(calls, lives.clamp(max=8).int())
        assert torch.equal(result.grad_evals, calls)
        check_guarantees(model, images, labels, result)
        ended = lives < 8
        assert torch.equal(result.found[ended], closest[ended].isfinite())
        torch.testing.assert_close(result.distance[ended], closest[ended])

    def test_numbers_may_be_replaced_or_written(self, few: Task) -> None:
        model, images, labels = few
        seen = []

        def replacing(step: Iterate) -> Tensor:
            seen.append(float(step.eps.amax()))
            step.eps = step.eps + 1
            return step.x

        find_min_adversarial(model, images[:3], labels[:3], method=replacing, steps=4)
        assert seen == [0, 1, 2, 3]

    @may_run_out
    def test_what_it_does_to_its_iterate_stays_there(self, few: Task) -> None:
        model, images, labels = few

        def careless(step: Iterate) -> Tensor:
            following = step.x + 0.05 * step.grad.sign()
            for part in (
                step.x,
                step.inputs,
                step.grad,
                step.margin,
                step.best,
                step.adversarial,
                step.sample,
                step.step,
            ):
                part.zero_()
            return following

        kept = images.clone()
        result = find_min_adversarial(model, images, labels, method=careless)
        assert torch.equal(images, kept)
        assert result.found.float().mean() > 0.9
        check_guarantees(model, images, labels, result)

    @may_run_out
    def test_the_box_holds(self, few: Task) -> None:
        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method=lambda step: step.x + 1e6 * step.grad.sign())
        check_guarantees(model, images, labels, result)

    @may_run_out
    def test_a_row_that_is_not_finite_ends_its_sample(self, few: Task) -> None:
        model, images, labels = few

        def ending(step: Iterate) -> Tensor:
            following = step.x + 0.2 * unit(step.grad)
            following[(step.sample == 1) & (step.step == 2), 0, 0, 0] = torch.nan
            following[(step.sample == 2) & (step.step == 2)] = torch.inf
            return following

        result = find_min_adversarial(model, images[:4], labels[:4], method=ending, steps=12)
        assert result.grad_evals.tolist() == [12, 3, 3, 12]
        assert result.images.isfinite().all()

    @may_run_out
    def test_results_with_a_history(self, few: Task) -> None:
        model, images, labels = few
        weight = torch.ones((), requires_grad=True)
        result = find_min_adversarial(
            model, images, labels, method=lambda step: weight * step.x + 0.05 * step.grad.sign()
        )
        assert not result.images.requires_grad
        assert result.found.float().mean() > 0.9

    @pytest.mark.parametrize(
        ("answer", "got"),
        [
            (lambda step: step.x[:1], r"shape \(1, 1, 6, 6\)"),
            (lambda step: step.x.flatten(1), r"shape \(5, 36\)"),
            (lambda step: step.x[0], r"shape \(1, 6, 6\)"),
            (lambda _step: None, "NoneType"),
            (lambda step: (step.x, step.eps), "tuple"),
            (lambda step: step.x.numpy(), "ndarray"),
        ],
        ids=["rows", "flat", "one", "nothing", "tuple", "array"],
    )
    def test_another_shape_is_refused(self, few: Task, answer, got: str) -> None:
        model, images, labels = few
        model.train()
        with pytest.raises(InputError, match=f"what method returns must be the next iterates, .*, got {got}"):
            find_min_adversarial(model, images[:5], labels[:5], method=answer)
        assert model.training

    def test_its_errors_come_through(self, few: Task) -> None:
        model, images, labels = few
        model.train()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        random = torch.get_rng_state()

        def failing(step: Iterate) -> Tensor:
            if step.step[0] == 3:
                raise ZeroDivisionError("mine")
            return step.x

        with pytest.raises(ZeroDivisionError, match="mine"):
            find_min_adversarial(model, images, labels, method=failing)
        assert all(module.training for module in model.modules())
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert torch.equal(random, torch.get_rng_state())

    def test_callable_objects(self, few: Task) -> None:
        class Rule:
            def __call__(self, step: Iterate) -> Tensor:
                return plain_ddn(step)

        model, images, labels = few
        own, plain = (find_min_adversarial(model, images, labels, method=method) for method in (Rule(), plain_ddn))
        assert torch.equal(own.images, plain.images)


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

        assert graph.repeated(iterate, torch.device("cpu")) is iterate

    def test_every_call_is_one_iteration(self, monkeypatch) -> None:
        cuda = FakeCuda(monkeypatch)
        once = graph.repeated(cuda.launch, torch.device("cuda"))
        for calls in range(1, 3 * graph.WARM_UP + 2):
            once()
            assert cuda.ran == calls
        assert cuda.captures == 1

    def test_what_cannot_be_captured_goes_on_with_one_warning(self, monkeypatch) -> None:
        cuda = FakeCuda(monkeypatch, failing=True)
        once = graph.repeated(cuda.launch, torch.device("cuda"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for calls in range(1, 3 * graph.WARM_UP + 2):
                once()
                assert cuda.ran == calls
        assert [str(warning.message) for warning in caught] == [
            "the search goes on without a CUDA graph: operation not permitted when stream is capturing"
        ]
        assert cuda.captures == 1

    def test_errors_of_the_model_are_no_matter_of_graphs(self, monkeypatch) -> None:
        cuda = FakeCuda(monkeypatch)

        def failing() -> None:
            cuda.launch()
            raise ZeroDivisionError

        once = graph.repeated(failing, torch.device("cuda"))
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
        assert batch.fitting(model, torch.rand(8, 4)) == expected
        assert batch.fitting(model.double(), torch.rand(8, 4).double()) == max(8, min(expected, cache // 4000))

    def test_on_a_gpu(self) -> None:
        assert batch.fitting(nn.Identity(), torch.empty(8, 4, device="meta")) == batch.ON_GPU

    @pytest.mark.parametrize("model", [Linear(3, 4), WithAScalarPart(Linear(3, 4))], ids=["one", "scalar"])
    def test_models_whose_layers_tell_nothing(self, model: nn.Module) -> None:
        assert batch.fitting(model, torch.rand(8, 4)) in range(8, 33)

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
                batch.fitting(model, torch.rand(8, 4))
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
        assert batch.last_level_cache() == batch.CACHE_WITHOUT_ANSWER


class TestAdversarialSet:
    def test_is_a_dataset_of_what_was_found(self, few: Task) -> None:
        model, images, labels = few
        found = find_min_adversarial(model, images, labels)
        odd = torch.arange(len(images)) % 2 == 1
        result = dataclasses.replace(found, found=odd)
        assert len(result) == odd.sum()
        image, label = result[3]
        assert torch.equal(image, found.images[7])
        assert label == found.labels[7]
        with pytest.raises(IndexError):
            result[len(result)]

    def test_save_and_load(self, few: Task, tmp_path) -> None:
        model, images, labels = few
        result = find_min_adversarial(model, images, labels)
        result.save(tmp_path / "set.safetensors")
        loaded = AdversarialSet.load(tmp_path / "set.safetensors")
        assert all(torch.equal(value, getattr(loaded, key)) for key, value in dataclasses.asdict(result).items())
        assert [path.name for path in tmp_path.iterdir()] == ["set.safetensors"]

    def test_load_refuses_other_files(self, tmp_path) -> None:
        (tmp_path / "text").write_text("not a set")
        for name in ("text", "absent"):
            with pytest.raises(InputError, match=r"path must be a file that AdversarialSet\.save wrote"):
                AdversarialSet.load(tmp_path / name)


class TestTransfer:
    @may_run_out
    @every_method
    def test_to_the_model_itself(self, few: Task, method) -> None:
        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method=method, eps_max=0.5, margin=1e-3)
        model.train()
        transfer = result.transfer(model, batch_size=7)
        assert model.training
        assert torch.equal(transfer.fooled, result.found)
        assert torch.equal(transfer.labels, result.labels)

    @may_run_out
    def test_to_another(self, few: Task) -> None:
        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method="ddn", eps_max=0.5)
        other = trained_net(images, labels)
        with torch.inference_mode():
            transfer = result.transfer(other)
        assert not transfer.labels.requires_grad
        predicted = other(result.images).argmax(1)
        assert torch.equal(transfer.labels, predicted)
        assert torch.equal(transfer.fooled, result.found & (predicted != labels))
        assert result.transfer(other.half()).labels.shape == labels.shape

    def test_a_model_that_changes_its_input_does_not_change_the_set(self, few: Task) -> None:
        class Zeroing(Around):
            def forward(self, x: Tensor) -> Tensor:
                logits = self.inner(x)
                x.zero_()
                return logits

        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method="ddn")
        kept = result.images.clone()
        assert result.transfer(Zeroing(model)).fooled.float().mean() > 0.9
        assert torch.equal(result.images, kept)

    def test_nan_fools_nobody(self, few: Task) -> None:
        class Broken(Around):
            def forward(self, x: Tensor) -> Tensor:
                return self.inner(x) * torch.nan

        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method="ddn")
        transfer = result.transfer(Broken(model))
        assert not transfer.fooled.any()
        assert (transfer.labels == -1).all()

    @may_run_out
    @pytest.mark.parametrize(
        ("model", "message"),
        [(len, "model must be an nn.Module"), (Linear(2, 36), "model must be of at least 4 classes, got 2")],
        ids=["no model", "fewer classes"],
    )
    def test_refuses_other_models(self, few: Task, model, message: str) -> None:
        own, images, labels = few
        labels[0] = 3
        result = find_min_adversarial(own, images, labels, method="ddn", steps=1)
        with pytest.raises(InputError, match=message):
            result.transfer(model)
        with pytest.raises(InputError, match="batch_size must be"):
            result.transfer(own, batch_size=0)


class TestDatasets:
    @every_method
    def test_any_map_style_dataset(self, few: Task, method) -> None:
        model, images, labels = few
        tensors = find_min_adversarial(model, images, labels, method=method)
        pairs = Pairs(*zip(images, labels.tolist(), strict=True))
        for dataset in (TensorDataset(images, labels), pairs):
            assert torch.equal(find_min_adversarial(model, dataset, method=method).images, tensors.images)

    @pytest.mark.parametrize(
        ("item", "message"),
        [
            ((torch.zeros(1, 6, 5), 0), r"inputs\[70\] must be an image like inputs\[.*\], \(1, 6, 6\) torch.float32"),
            ((torch.zeros(1, 6, 6).double(), 0), r"inputs\[70\] must be an image like"),
            ((torch.full((1, 6, 6), torch.nan), 0), r"inputs\[70\] must be free of NaN"),
            ((torch.full((1, 6, 6), 1.5), 0), r"inputs\[70\] must be inside bounds"),
            ((torch.zeros(1, 6, 6), -1), r"inputs\[70\] label must be in \[0, 4\)"),
            ((torch.zeros(1, 6, 6), 4), r"inputs\[70\] label must be in \[0, 4\), got values from 4 to 4"),
            ((torch.zeros(1, 6, 6), 0.5), r"inputs\[70\] must be a pair"),
            ((torch.zeros(1, 6, 6),), r"inputs\[70\] must be a pair"),
            (None, r"inputs\[70\] must be a pair"),
        ],
    )
    def test_a_bad_item_is_named(self, task: Task, item, message: str) -> None:
        model, images, labels = task
        pairs = Pairs(*zip(images, labels.tolist(), strict=True))
        pairs.items = (*pairs.items[:70], item, *pairs.items[71:])
        with pytest.raises(InputError, match=message):
            find_min_adversarial(model, pairs, method="ddn", steps=2)

    @pytest.mark.parametrize("row", [0, 3])
    def test_among_the_first_ones_too(self, task: Task, row: int) -> None:
        model, images, labels = task
        images[row] = torch.nan
        with pytest.raises(InputError, match=rf"inputs\[{row}\] must be free of NaN"):
            find_min_adversarial(model, Pairs(*zip(images, labels.tolist(), strict=True)))
