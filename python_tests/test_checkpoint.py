"""Checkpoints: exact round trips, and no change to the model or the disk when anything is wrong."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from training_tools import equal

from amun_ext import models
from amun_ext.validation import InputError


def small(seed, num_classes=3):
    torch.manual_seed(seed)
    model = models.build("small-cnn", num_classes=num_classes, in_channels=1, width=2)
    model(torch.rand(4, 1, 8, 8))  # batch-norm buffers that are not the initial ones
    return model


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 4)
        self.decode.weight = self.encode.weight


def test_round_trip(tmp_path):
    model, other = small(1), small(2)
    metadata = {"architecture": "small-cnn", "forgotten": "3,17"}
    models.save_checkpoint(tmp_path / "new" / "a.safetensors", model, metadata)
    assert not equal(model, other)
    assert models.load_checkpoint(tmp_path / "new" / "a.safetensors", other) == metadata
    assert equal(model, other)
    assert models.read_metadata(tmp_path / "new" / "a.safetensors") == metadata
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]


def test_tied_and_strided_weights(tmp_path):
    model, other = Tied(), Tied()
    model.encode.weight.data = torch.rand(4, 4).t()
    models.save_checkpoint(tmp_path / "a.safetensors", model, {})
    models.load_checkpoint(tmp_path / "a.safetensors", other)
    assert equal(model, other)
    assert other.decode.weight is other.encode.weight


@pytest.mark.parametrize("suffix", ["pt", "pth"])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_pickled_state_dicts(tmp_path, suffix, key):
    model, other = small(1), small(2)
    state = model.state_dict()
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / f"a.{suffix}")
    assert models.load_checkpoint(tmp_path / f"a.{suffix}", other) == {}
    assert equal(model, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_is_cast_and_integers_are_exact(tmp_path, dtype):
    model, other = small(1).to(dtype), small(2)
    model[1].num_batches_tracked.fill_(2**24 + 1)  # no float32 holds it
    models.save_checkpoint(tmp_path / "a.safetensors", model, {})
    models.load_checkpoint(tmp_path / "a.safetensors", other)
    assert other[0].weight.dtype == torch.float32
    assert equal(copy.deepcopy(model).float(), other)
    assert other[1].num_batches_tracked == 2**24 + 1


def test_load_keeps_flags_and_mode(tmp_path):
    model = small(1).eval()
    model[0].weight.requires_grad_(False)
    weight = model[0].weight
    models.save_checkpoint(tmp_path / "a.safetensors", small(2), {})
    models.load_checkpoint(tmp_path / "a.safetensors", model)
    assert model[0].weight is weight
    assert not weight.requires_grad
    assert not model.training


def change(state, kind):
    if kind == "missing":
        del state["0.weight"], state["1.bias"]
        return state
    return (
        state
        | {
            "unexpected": {f"extra{number}": torch.zeros(1) for number in range(5)},
            "shape": {"11.weight": state["11.weight"][:, :1].clone()},
            "integer weight": {"0.weight": state["0.weight"].long()},
            "float counter": {"1.num_batches_tracked": state["1.num_batches_tracked"].float()},
            "nan": {"1.running_var": torch.full_like(state["1.running_var"], torch.nan)},
        }[kind]
    )


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"keys that do not fit: missing: 0.weight, 1.bias$"),
        ("unexpected", r"unexpected: extra0, extra1, extra2 and 2 more$"),
        ("shape", r"other shape or type: 11.weight \(\[3, 1\] float32 in the file, \[3, 4\] float32 in the model\)"),
        ("integer weight", r"0.weight \(.* int64 in the file, .* float32 in the model\)"),
        ("float counter", r"1.num_batches_tracked \(\[\] float32 in the file, \[\] int64 in the model\)"),
        ("nan", r"free of NaN, got NaN in 1.running_var"),
    ],
)
def test_refused_and_model_unchanged(tmp_path, suffix, kind, message):
    model, path = small(1), tmp_path / f"a.{suffix}"
    before = copy.deepcopy(model)
    state = change(small(2).state_dict(), kind)
    if suffix == "pt":
        torch.save(state, path)
    else:
        save_file(dict(state), path)
    with pytest.raises(InputError, match=message):
        models.load_checkpoint(path, model)
    assert equal(model, before)


def test_other_architecture_is_one_message(tmp_path):
    models.save_checkpoint(tmp_path / "a.safetensors", small(1, num_classes=4), {})
    with pytest.raises(InputError, match=r"a checkpoint of this architecture.*\[4, 4\] float32 in the file, \[3, 4\]"):
        models.load_checkpoint(tmp_path / "a.safetensors", small(1))
    with pytest.raises(InputError, match=r"missing: .*; unexpected: .* and \d+ more"):
        models.load_checkpoint(tmp_path / "a.safetensors", Tied())


class Runs:
    """Writes a file if anybody unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x80\x04.", bytes(range(256)) * 9])
def test_no_checkpoint(tmp_path, suffix, content):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"a.{suffix} must be a"):
        models.load_checkpoint(path, small(1))


def test_pickle_is_not_run(tmp_path):
    torch.save({"a": Runs(tmp_path / "ran")}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="must be a checkpoint"):
        models.load_checkpoint(tmp_path / "a.pt", small(1))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "a state dict .* got Tensor"),
        ({"0.weight": [1, 2], "epoch": 3}, "a state dict of tensors, got other things at 0.weight, epoch"),
        ({1: torch.zeros(1)}, "unexpected: 1"),
    ],
)
def test_other_contents(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match=message):
        models.load_checkpoint(tmp_path / "a.pt", small(1))


def test_paths(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"")
    for message, call, name, *more in (
        (r"absent\.pt, which does not exist", models.load_checkpoint, "absent.pt", small(1)),
        (r"a .safetensors, .pt or .pth file, got .*a.bin", models.load_checkpoint, "a.bin", small(1)),
        (r"ends in .safetensors", models.save_checkpoint, "a.pt", small(1), {}),
        (r"a .safetensors file, got .*a.pt", models.read_metadata, "a.pt"),
        ("which does not exist", models.read_metadata, "absent.safetensors"),
    ):
        with pytest.raises(InputError, match=message):
            call(tmp_path / name, *more)


def test_save_refuses_nan_and_wrong_metadata(tmp_path):
    model = small(1)
    with pytest.raises(InputError, match="metadata must be strings by strings"):
        models.save_checkpoint(tmp_path / "a.safetensors", model, {"epochs": 3})
    model[0].weight.data[0] = float("nan")
    with pytest.raises(InputError, match=r"free of NaN, got NaN in 0.weight"):
        models.save_checkpoint(tmp_path / "a.safetensors", model, {})
    assert list(tmp_path.iterdir()) == []


def test_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    models.save_checkpoint(path, small(1), {"which": "old"})
    before = path.read_bytes()

    def die(tensors, temporary, metadata):
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("amun_ext.files.save_file", die)
    for target in (path, tmp_path / "b.safetensors"):
        with pytest.raises(KeyboardInterrupt):
            models.save_checkpoint(target, small(2), {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_data_parallel_and_compiled_models_are_accepted(tmp_path, prefix):
    model = nn.Sequential(nn.Linear(2, 3))
    torch.save({f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}, path := tmp_path / "p.pt")
    models.load_checkpoint(path, other := nn.Sequential(nn.Linear(2, 3)))
    assert equal(model, other)


def test_a_models_own_module_keeps_its_name(tmp_path):
    model, other = (nn.ModuleDict({"module": nn.Linear(2, 3)}) for _ in range(2))
    models.save_checkpoint(path := tmp_path / "p.safetensors", model, {})
    models.load_checkpoint(path, other)
    assert equal(model, other)


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_tensors_without_plain_values_leave_the_model_as_it_was(tmp_path, kind):
    model = nn.Sequential(nn.Linear(2, 3))
    before = copy.deepcopy(model)
    odd = torch.ones(3, 2).to_sparse() if kind == "sparse" else torch.ones(3, 2, device="meta")
    torch.save({"0.bias": torch.ones(3), "0.weight": odd}, path := tmp_path / "p.pt")
    with pytest.raises(InputError):
        models.load_checkpoint(path, model)
    assert equal(model, before)
