"""find_min_adversarial with out=: results in a file, a search that is resumed, another search, a full disk."""

import dataclasses
import errno
import math
import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from search_tools import (
    CHUNK,
    COUNT,
    Linear,
    Pairs,
    RowNet,
    check_alike,
    check_guarantees,
    every_method,
    may_run_out,
    plain_ddn,
    problem,
    rows_done,
    rows_seen,
)
from torch import Tensor, nn

from amun_ext import AdversarialSet, InputError, find_min_adversarial
from amun_ext.search import Iterate
from amun_ext.search import find as search_module

pytestmark = may_run_out


@pytest.fixture
def task(monkeypatch) -> tuple[RowNet, Tensor, Tensor]:
    model, images, labels = problem()
    monkeypatch.setattr(search_module, "CHUNK_BATCHES", 1)  # of a file
    monkeypatch.setattr(search_module, "CHUNK_BYTES", CHUNK * images[0].nbytes)  # in memory
    return model, images, labels


def quick(method) -> dict[str, object]:
    options = {"method": method, "batch_size": CHUNK}
    return options | ({"steps": 10, "eps_init": 0.2} if method == "pgd" else {})


def equal(one: AdversarialSet, other: AdversarialSet) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one)]
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


class Interrupted(BaseException):
    pass


@pytest.fixture
def interrupt(monkeypatch) -> Callable[[int], None]:
    """Let the search end at its n-th chunk from now on, before the results of that are written; 0: never."""
    write, left = search_module._write, [0]

    def interrupting(*arguments: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Interrupted
        write(*arguments)

    monkeypatch.setattr(search_module, "_write", interrupting)
    return lambda chunks: left.__setitem__(0, chunks)


class TestFile:
    @every_method
    def test_equals_the_results_in_memory(self, task, method, tmp_path) -> None:
        model, images, labels = task
        options = quick(method) | {"refine": 2, "eps_max": 1.0}
        memory = find_min_adversarial(model, images, labels, **options)
        out = tmp_path / "new" / "set.safetensors"
        file = find_min_adversarial(model, images, labels, out=out, **options)
        check_guarantees(model, images, labels, file)
        assert equal(memory, file)
        assert equal(memory, AdversarialSet.load(out))
        assert equal(memory, AdversarialSet(**load_file(out)))  # as any reader has it
        assert [path.name for path in out.parent.iterdir()] == ["set.safetensors"]
        assert out.stat().st_mode & 0o777 == 0o666 & ~_umask()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
    @pytest.mark.parametrize("shape", [(7,), (3, 5), (1, 3, 3)])
    def test_any_type_and_shape(self, dtype: torch.dtype, shape: tuple[int, ...], tmp_path) -> None:
        model, x = Linear(3, math.prod(shape)).to(dtype), torch.rand(5, *shape).to(dtype)
        labels = model(x).argmax(1)
        for name in (str(tmp_path / "set"), tmp_path / "set of another name"):
            file = find_min_adversarial(model, x, labels, method="ddn", out=name)
            assert equal(find_min_adversarial(model, x, labels, method="ddn"), file)

    def test_any_source(self, task, tmp_path) -> None:
        model, images, labels = task
        options = {"method": "ddn", "batch_size": CHUNK}
        expected = find_min_adversarial(model, images, labels, **options)
        pixels = np.memmap(tmp_path / "pixels", np.float32, "w+", shape=tuple(images.shape))
        pixels[:] = images.numpy()
        pairs = Pairs(*zip(images, labels.tolist(), strict=True))
        for number, source in enumerate(
            [(torch.from_numpy(pixels), labels), (pairs,), (images.mT.contiguous().mT, labels)]
        ):
            for out in (None, tmp_path / f"{number}"):
                assert equal(expected, find_min_adversarial(model, *source, out=out, **options))

    def test_a_finished_file_is_not_searched_again(self, task, tmp_path) -> None:
        model, images, labels = task
        options = {"method": "ddn", "batch_size": CHUNK, "out": tmp_path / "set"}
        first = find_min_adversarial(model, images, labels, **options)
        written = (tmp_path / "set").stat().st_mtime_ns
        model.seen = tmp_path / "seen"
        again = find_min_adversarial(model, images, labels, **options)
        assert equal(first, again)
        assert rows_seen(model.seen) <= set(range(8))  # what a look at the model takes
        assert len(model.seen.read_text().splitlines()) <= 8
        assert (tmp_path / "set").stat().st_mtime_ns == written

    def test_rows_without_an_example(self, task, tmp_path) -> None:
        model, images, labels = task
        options = {"method": "ddn", "batch_size": CHUNK, "eps_max": 0.2, "min_margin": 0.1}
        file = find_min_adversarial(model, images, labels, out=tmp_path / "set", **options)
        assert not file.found.all()
        assert equal(find_min_adversarial(model, images, labels, **options), file)
        assert equal(find_min_adversarial(model, images, labels, out=tmp_path / "set", **options), file)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class TestResume:
    @every_method
    def test_continues_after_an_interrupt(self, task, method, tmp_path, interrupt) -> None:
        model, images, labels = task
        options = quick(method) | {"refine": 2, "quantize": 255}
        whole = find_min_adversarial(model, images, labels, **options)
        out, partial = tmp_path / "set", tmp_path / "set.partial"
        done = 0
        for chunks in (3, 2, 0):
            interrupt(chunks)
            model.seen = tmp_path / f"seen{chunks}"
            if chunks:
                with pytest.raises(Interrupted):
                    find_min_adversarial(model, images, labels, out=out, **options)
                assert not out.exists()
                seen, done = rows_seen(model.seen), done + CHUNK * (chunks - 1)
                assert rows_done(partial) == done
                assert seen <= set(range(8)) | set(range(done - CHUNK * (chunks - 1), done + CHUNK))
            else:
                result = find_min_adversarial(model, images, labels, out=out, **options)
                assert method == "ffgsm" or rows_seen(model.seen) <= set(range(8)) | set(range(done, COUNT))
        assert not partial.exists()
        assert equal(whole, result)

    def test_with_another_batch_size(self, task, tmp_path, interrupt) -> None:
        """Which may follow from the machine; results do not depend on it."""
        model, images, labels = task
        whole = find_min_adversarial(model, images, labels, method="ddn", batch_size=CHUNK)
        interrupt(3)
        with pytest.raises(Interrupted):
            find_min_adversarial(model, images, labels, method="ddn", out=tmp_path / "set", batch_size=CHUNK)
        result = find_min_adversarial(model, images, labels, method="ddn", out=tmp_path / "set")
        check_alike(whole, result)
        check_guarantees(model, images, labels, result)

    def test_with_the_same_rule_made_anew(self, task, tmp_path, interrupt) -> None:
        """As in another process: its address is another one."""
        model, images, labels = task

        def made() -> Callable[[Iterate], Tensor]:
            return lambda step: plain_ddn(step)

        rules = [made(), made()]
        interrupt(3)
        with pytest.raises(Interrupted):
            find_min_adversarial(model, images, labels, method=rules[0], out=tmp_path / "set", batch_size=CHUNK)
        result = find_min_adversarial(model, images, labels, method=rules[1], out=tmp_path / "set", batch_size=CHUNK)
        assert equal(find_min_adversarial(model, images, labels, method=plain_ddn, batch_size=CHUNK), result)

    def test_in_the_process_that_was_interrupted(self, task, tmp_path, interrupt) -> None:
        """A notebook keeps the last traceback, and with it all that its frames hold."""
        model, images, labels = task
        options = {"method": "ddn", "batch_size": CHUNK, "out": tmp_path / "set"}
        interrupt(2)
        kept = None
        try:
            find_min_adversarial(model, images, labels, **options)
        except Interrupted as error:
            kept = error
        assert kept is not None
        assert find_min_adversarial(model, images, labels, **options).found.all()

    @pytest.mark.parametrize("size", [0, 8, 100_000])
    def test_a_file_without_a_beginning_is_a_new_one(self, task, tmp_path, size: int) -> None:
        """What a kill at the very beginning leaves."""
        model, images, labels = task
        (tmp_path / "set.partial").write_bytes(bytes(size))
        options = {"method": "ddn", "batch_size": CHUNK}
        result = find_min_adversarial(model, images, labels, out=tmp_path / "set", **options)
        assert equal(find_min_adversarial(model, images, labels, **options), result)
        assert [path.name for path in tmp_path.iterdir()] == ["set"]

    def test_after_a_bad_item(self, task, tmp_path) -> None:
        """Beyond what is looked at before the search."""
        model, images, labels = task
        bad = 70
        pairs = Pairs(*zip(images, labels.tolist(), strict=True))
        whole = find_min_adversarial(model, pairs, method="ddn", batch_size=CHUNK)
        items = pairs.items
        pairs.items = (*items[:bad], (images[bad] + 2, 0), *items[bad + 1 :])
        options = {"method": "ddn", "batch_size": CHUNK, "out": tmp_path / "set"}
        with pytest.raises(InputError, match=rf"inputs\[{bad}\] must be inside bounds"):
            find_min_adversarial(model, pairs, **options)
        assert rows_done(tmp_path / "set.partial") == 64
        pairs.items = items
        model.seen = tmp_path / "seen"
        assert equal(whole, find_min_adversarial(model, pairs, **options))
        assert rows_seen(model.seen) <= set(range(8)) | set(range(64, COUNT))


OTHER_SETTINGS = {
    "method": ("method", {"method": "pgd"}),
    "a rule": ("method", {"method": plain_ddn}),
    "steps": ("steps", {"steps": 19}),
    "loss": ("loss", {"loss": "margin"}),
    "eps_growth": ("eps_growth", {"eps_growth": 1.2}),
    "eps_init": ("eps_init", {"eps_init": 0.1}),
    "eps_max": ("eps_max", {"eps_max": 1.0}),
    "step_fraction": ("step_fraction", {"step_fraction": 0.9}),
    "refine": ("refine", {"refine": 1}),
    "min_margin": ("min_margin", {"min_margin": 0.1}),
    "quantize": ("quantize", {"quantize": 255}),
    "bounds": ("bounds", {"bounds": (0.0, 2.0)}),
    "precision": ("precision", {"precision": "bfloat16"}),
}


class TestAnotherSearch:
    """The file of one search is never mixed with the results of another, and never lost to it."""

    @pytest.fixture(params=["unfinished", "finished"])
    def file(self, request, task, tmp_path, interrupt) -> Path:
        model, images, labels = task
        interrupt(3 if request.param == "unfinished" else 0)
        options = {"method": "ddn", "batch_size": CHUNK, "out": tmp_path / "set"}
        if request.param == "finished":
            find_min_adversarial(model, images, labels, **options)
            return tmp_path / "set"
        with pytest.raises(Interrupted):
            find_min_adversarial(model, images, labels, **options)
        return tmp_path / "set.partial"

    def refused(self, file: Path, differs: str, *arguments: object, **options: object) -> None:
        before = file.read_bytes()
        options = {"method": "ddn", "batch_size": CHUNK, "out": file.parent / "set"} | options
        with pytest.raises(InputError, match=rf"out must be .* of this search, got .*other .*'{differs}'"):
            find_min_adversarial(*arguments, **options)
        assert file.read_bytes() == before
        assert len([*file.parent.iterdir()]) == 1

    @pytest.mark.parametrize(("differs", "options"), OTHER_SETTINGS.values(), ids=OTHER_SETTINGS.keys())
    def test_other_settings(self, task, file: Path, differs: str, options: dict) -> None:
        self.refused(file, differs, *task, **options)

    @pytest.mark.parametrize("what", ["weight", "buffer", "activation", "keys"])
    def test_another_model(self, task, file: Path, what: str) -> None:
        model, images, labels = task
        with torch.no_grad():
            if what == "weight":
                model.layers[0].weight[0, 0] += 1e-3
            elif what == "buffer":  # that a state_dict() has not
                model.mean[0] += 1e-3
            elif what == "activation":
                model.layers[1] = nn.ReLU()
            else:
                model.layers = nn.Sequential(model.layers)
        self.refused(file, "model", model, images, labels)

    @pytest.mark.parametrize("what", ["pixel", "label", "fewer", "dtype"])
    def test_other_data(self, task, file: Path, what: str) -> None:
        model, images, labels = task
        if what == "pixel":
            images[3, 0, 0] = (images[3, 0, 0] + 0.5) % 1
        elif what == "label":
            labels[5] = (labels[5] + 1) % 4
        elif what == "fewer":
            images, labels = images[:-1], labels[:-1]
        else:
            images = images.double()
        self.refused(file, "samples", model, images, labels)

    # An empty set.partial is what a kill at the very beginning leaves: that one is no other file.
    @pytest.mark.parametrize(
        ("name", "kind"),
        [("set", "empty")]
        + [(name, kind) for name in ("set", "set.partial") for kind in ("text", "truncated", "saved", "of others")],
    )
    def test_other_files(self, task, tmp_path, name: str, kind: str) -> None:
        model, images, labels = task
        path, options = tmp_path / name, {"method": "ddn", "batch_size": CHUNK, "out": tmp_path / "set"}
        if kind == "truncated":
            find_min_adversarial(model, images, labels, **options)
            content = options["out"].read_bytes()[:-100]
            options["out"].unlink()
            path.write_bytes(content)
        elif kind == "saved":
            find_min_adversarial(model, images, labels, method="ddn").save(path)
        elif kind == "of others":
            from safetensors.torch import save_file

            save_file({"x": torch.zeros(3)}, path)
        else:
            path.write_text("a short text" if kind == "text" else "")
        before = path.read_bytes()
        with pytest.raises(InputError, match="out must be a new file or one of this search"):
            find_min_adversarial(model, images, labels, **options)
        assert path.read_bytes() == before

    def test_two_searches_of_one_file_at_once(self, task, tmp_path) -> None:
        model, images, labels = task
        options = {"method": "ddn", "batch_size": CHUNK, "out": tmp_path / "set"}
        tried = []

        def meanwhile(step: Iterate) -> Tensor:
            if not tried:
                tried.append(True)
                with pytest.raises(InputError, match=r"out must not be in use by another process"):
                    find_min_adversarial(model, images, labels, **options | {"method": meanwhile})
            return plain_ddn(step)

        result = find_min_adversarial(model, images, labels, **options | {"method": meanwhile})
        assert tried
        assert result.found.all()
        assert [path.name for path in tmp_path.iterdir()] == ["set"]


class TestDisk:
    def test_full(self, task, tmp_path, monkeypatch) -> None:
        model, images, labels = task

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", full)
            with pytest.raises(OSError, match="No space left on device"):
                find_min_adversarial(model, images, labels, method="ddn", out=tmp_path / "set")
        assert not [*tmp_path.iterdir()]
        assert model.training
        assert find_min_adversarial(model, images, labels, method="ddn", out=tmp_path / "set").found.all()

    def test_a_limit_of_the_file_size(self, task, tmp_path) -> None:
        model, images, labels = task
        images, labels = images.repeat(200, 1, 1), labels.repeat(200)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                find_min_adversarial(model, images, labels, method="ddn", out=tmp_path / "set")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not [*tmp_path.iterdir()]

    def test_its_space_is_allocated_at_the_start(self, task, tmp_path, interrupt) -> None:
        model, images, labels = task
        interrupt(1)
        with pytest.raises(Interrupted):
            find_min_adversarial(model, images, labels, method="ddn", out=tmp_path / "set", batch_size=CHUNK)
        taken = (tmp_path / "set.partial").stat()
        assert taken.st_blocks * 512 >= taken.st_size
        assert rows_done(tmp_path / "set.partial") == 0


class TestChecksOfTheFirstItems:
    def test_a_dataset_is_not_read_before_its_turn(self, task, tmp_path, interrupt) -> None:
        model, images, labels = task
        read = []

        class Reading(Pairs):
            def __getitem__(self, index: int):
                read.append(index)
                return super().__getitem__(index)

        pairs = Reading(*zip(images, labels.tolist(), strict=True))
        interrupt(5)
        with pytest.raises(Interrupted):
            find_min_adversarial(model, pairs, method="ddn", batch_size=CHUNK, out=tmp_path / "set")
        read.clear()
        find_min_adversarial(model, pairs, method="ddn", batch_size=CHUNK, out=tmp_path / "set")
        assert read == [*range(8), *range(64), *range(64, COUNT)]  # to check, to compare, to search
