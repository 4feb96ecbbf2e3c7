"""What a checkpoint says of itself is read in one place, as what it must be, or refused by file and key."""

import json
import tracemalloc
from dataclasses import asdict

import pytest
import torch
from torch import nn

from amun_ext import cli, models
from amun_ext.deletion import Record
from amun_ext.models.small_cnn import small_cnn
from amun_ext.training import Recipe
from amun_ext.validation import InputError

RECIPE = Recipe(epochs=3, lr=0.1, schedule="step:2", augment=True, precision="bfloat16")
FULL = Record(
    arch="small-cnn",
    width=8,
    training_data="c0ffee",
    recipe=RECIPE,
    forgotten=(3, 1, 4),
    unlearning={"method": "amun", "recipe": asdict(RECIPE), "keep": None, "bounds": [0.0, 1.0]},
    made_of=("ab" * 32, "01" * 32),
    teachers=("cd" * 32,),
    seconds=12.5,
    resize=64,
    test_fraction=1e-05,
    others={"format": "pt", "author": "me"},
)
DEEP = "[" * 100_000 + "]" * 100_000


class TestRead:
    @pytest.mark.parametrize("record", [FULL, Record(), Record(forgotten=()), Record(recipe=RECIPE)])
    def test_is_what_was_written(self, record: Record) -> None:
        metadata = record.to_metadata()
        assert all(isinstance(part, str) for pair in metadata.items() for part in pair)
        assert Record.read(metadata, "a") == record

    def test_files_without_a_version_are_read(self) -> None:
        """As the first ones were written."""
        metadata = {"arch": "vgg19", "recipe": '{"epochs": 3, "lr": 0.1}', "forgotten": " [1,  2 ]\n", "seconds": "2"}
        assert Record.read(metadata, "a") == Record(
            arch="vgg19", recipe=Recipe(epochs=3, lr=0.1), forgotten=(1, 2), seconds=2.0
        )

    @pytest.mark.parametrize(
        ("key", "text", "message"),
        [
            ("amun_ext", "2", "1: it may be of a later version of amun_ext, got '2'"),
            ("arch", "", "a short printable text, got ''"),
            ("arch", "a\x1b[31mb", r"a short printable text, got 'a\x1b[31mb'"),
            ("arch", "a" * 5000, "a short printable text, got 'aaaa"),
            ("arch", "a" * 100_000, "of at most 65536 characters, got 100000"),
            ("width", "8.0", "a whole number from 1 to 99999, got '8.0'"),
            ("width", "-8", "a whole number"),
            ("width", "0", "a whole number"),
            ("width", "true", "a whole number"),
            ("width", "٨", "a whole number"),
            ("width", "8\n", "a whole number"),
            ("resize", "0", "a whole number"),
            ("test_fraction", "1.0", "a number between 0 and 1"),
            ("test_fraction", "nan", "a number between 0 and 1"),
            ("width", "9" * 5000, "a whole number"),
            ("seconds", "nan", "a number of seconds, such as 12.5, got 'nan'"),
            ("seconds", "-1", "a number of seconds"),
            ("seconds", "1e400", "a number of seconds"),
            ("seconds", '"1"', "a number of seconds"),
            ("forgotten", '{"3": 4}', "a JSON list of ids, from 0 on"),
            ("forgotten", "[true]", "a JSON list of ids"),
            ("forgotten", "[3.0]", "a JSON list of ids"),
            ("forgotten", "[-3]", "a JSON list of ids"),
            ("forgotten", '["3"]', "a JSON list of ids"),
            ("forgotten", "[1,]", "a JSON list of ids"),
            ("forgotten", "[1, 2", "a JSON list of ids"),
            ("forgotten", "3", "a JSON list of ids"),
            ("forgotten", "", "a JSON list of ids"),
            ("forgotten", "[3, 1, 3]", "free of repeated ids, got [3]"),
            ("forgotten", f"[{'9' * 5000}]", "a JSON list of ids"),
            ("forgotten", DEEP, "a JSON list of ids"),
            ("made_of", "[]]", "JSON, got Extra data"),
            ("made_of", '{"a": 1}', "a JSON list of SHA-256 digests"),
            ("made_of", '["ab"]', "a JSON list of SHA-256 digests"),
            ("made_of", f'["{"AB" * 32}"]', "a JSON list of SHA-256 digests"),
            ("recipe", "epochs", "JSON, got Expecting value"),
            ("recipe", "[1]", "a JSON object, got '[1]'"),
            ("recipe", "{}", "a recipe with epochs and lr, got '{}'"),
            ("recipe", '{"epochs": "3", "lr": 0.1}', "a recipe: epochs must be a whole number from 1 on, got '3'"),
            ("recipe", '{"epochs": 3.5, "lr": 0.1}', "a recipe: epochs must be a whole number from 1 on, got 3.5"),
            ("recipe", '{"epochs": true, "lr": 0.1}', "a recipe: epochs must be a whole number from 1 on, got True"),
            ("recipe", '{"epochs": 3, "lr": NaN}', "JSON, got NaN, which no JSON has"),
            ("recipe", '{"epochs": 3, "lr": 1e400}', "JSON, got 1e400, which no JSON has"),
            ("recipe", '{"epochs": 3, "lr": "0.1"}', "a recipe: lr must be finite and not negative, got '0.1'"),
            ("recipe", '{"epochs": 3, "lr": 0.1, "augment": 1}', "a recipe: augment must be True or False, got 1"),
            ("recipe", '{"epochs": 3, "lr": 0.1, "schedule": "step:%s"}' % ("9" * 5000), "a recipe"),
            ("recipe", '{"epochs": 3, "lr": 0.1, "epochs": 100}', "JSON, got an object that has a key twice"),
            ("recipe", '{"epochs": 3, "lr": 0.1, "warm-up": 2}', "got one with 'warm-up'"),
            ("recipe", f'{{"epochs": {"9" * 5000}, "lr": 0.1}}', "JSON, got Exceeds the limit"),
            ("recipe", DEEP, "of at most 65536 characters, got 200000"),
            ("unlearning", DEEP[80_000:120_000], "JSON of at most 32 levels, got more"),
            ("unlearning", '{"a":' * 40 + "1" + "}" * 40, "JSON of at most 32 levels, got 40"),
            ("unlearning", "null", "a JSON object, got 'null'"),
        ],
    )
    def test_refused_by_file_and_key(self, key: str, text: str, message: str) -> None:
        with pytest.raises(InputError) as refused:
            Record.read({key: text}, "a.safetensors")
        told = str(refused.value)
        assert told.startswith(f"a.safetensors: {key} must be ")
        assert message in told
        assert len(told) < 500
        assert told.isprintable()

    def test_a_long_list_of_other_things_is_refused_before_it_is_made(self) -> None:
        text = f"[{'[],' * 3_000_000}[]]"
        tracemalloc.start()
        with pytest.raises(InputError, match="a JSON list of ids"):
            Record.read({"forgotten": text}, "a")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * len(text)


def save(path, model=None, **metadata):
    models.save_checkpoint(path, model or small_cnn(10, 1, 2), {"arch": "small-cnn", "width": "2", **metadata})
    return path


class TestCommands:
    @pytest.mark.parametrize("command", ["forget", "search", "compare", "tune", "audit", "references", "shadows"])
    def test_all_of_them_read_it_so(self, command: str, tmp_path, capsys) -> None:
        path = save(tmp_path / "m.safetensors", forgotten='{"3": 4}')
        ids = [] if command == "references" else ["--ids", "3"]
        arguments = [command, "--model", str(path), "--data", "digits", "--out", str(tmp_path / "out"), *ids]
        assert cli.main(arguments) == 2
        told = capsys.readouterr().err
        assert told == "amun: error: m.safetensors: forgotten must be a JSON list of ids, from 0 on, got '{\"3\": 4}'\n"

    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            ({"forgotten": "[1197]"}, "m.safetensors: forgotten must be ids in [0, 1197), the samples of --data"),
            (
                {"width": "20000"},
                "must be a checkpoint of this architecture, got one of 21600980013 values with width 20000",
            ),
        ],
    )
    def test_what_does_not_fit_data_and_file(self, metadata: dict, message: str, tmp_path, capsys) -> None:
        path = save(tmp_path / "m.safetensors", **metadata)
        out = tmp_path / "out"
        assert cli.main(["forget", "--model", str(path), "--data", "digits", "--ids", "3", "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()

    def test_what_train_writes(self, tmp_path) -> None:
        path = tmp_path / "m.safetensors"
        small = ["--model", "small-cnn", "--width", "2", "--epochs", "1", "--lr", "0.1"]
        assert cli.main(["train", "--data", "digits", *small, "--out", str(path)]) == 0
        record = Record.read(models.read_metadata(path), "m")
        assert (record.arch, record.width, record.forgotten) == ("small-cnn", 2, None)
        assert record.recipe is not None
        assert record.recipe.epochs == 1
        assert json.loads(models.read_metadata(path)["recipe"])["lr"] == 0.1


class Masked(nn.Module):
    """With an attention mask, whose infinite values are meant."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))


class TestValues:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("layer.weight", torch.inf, "finite weights and running statistics, got infinite values in layer.weight"),
            ("norm.running_mean", -torch.inf, "got infinite values in norm.running_mean"),
            ("norm.running_var", torch.inf, "got infinite values in norm.running_var"),
            ("norm.running_var", -1.0, "running variances from 0 on, got values below 0 in norm.running_var"),
            ("mask", torch.nan, "free of NaN, got NaN in mask"),
            ("layer.bias", 1e300, "got infinite values in layer.bias"),
        ],
    )
    def test_that_no_training_leaves_are_refused(self, name: str, value: float, message: str, tmp_path) -> None:
        model, path = Masked(), tmp_path / "m.pt"
        state = {
            key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in model.state_dict().items()
        }
        state[name].flatten()[-1] = value
        torch.save(state, path)
        before = [each.clone() for each in model.state_dict().values()]
        with pytest.raises(InputError, match=message):
            models.load_checkpoint(path, model)
        assert all(map(torch.equal, before, model.state_dict().values()))

    def test_a_mask_may_be_infinite(self, tmp_path) -> None:
        models.save_checkpoint(tmp_path / "m.safetensors", model := Masked(), {})
        models.load_checkpoint(tmp_path / "m.safetensors", other := Masked())
        assert torch.equal(model.layer.weight, other.layer.weight)

    def test_a_tensor_that_claims_a_terabyte_is_looked_at_no_closer(self, tmp_path) -> None:
        model = nn.Linear(2, 3)
        torch.save({"weight": torch.zeros(1).expand(2**38), "bias": torch.zeros(3)}, path := tmp_path / "m.pt")
        with pytest.raises(InputError, match=r"weight \(\[274877906944\] float32 in the file"):
            models.load_checkpoint(path, model)
