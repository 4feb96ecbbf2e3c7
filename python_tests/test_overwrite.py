"""Results of another model or of other samples are not replaced unless that is asked for."""

from pathlib import Path

import pytest

from amun_ext import cli, find_min_adversarial

COMMANDS = {
    "audit": ("audit", "audit.json"),
    "compare": ("compare --methods ga --seeds 1 --settings without --epochs 1", "compare.json"),
    "search": ("search --methods ffgsm --no-curves", "searches.json"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_result_of_other_samples_is_not_replaced(
    original: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, result = COMMANDS[name]
    command = [*flags.split(), "--model", str(original), "--data", "digits", "--quiet", "--out", str(tmp_path)]
    assert cli.main([*command, "--ids", "0-11"]) == 0
    before = (tmp_path / result).read_bytes()
    capsys.readouterr()
    assert cli.main([*command, "--ids", "12-23"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "--out must be a folder without another result" in told
    assert (tmp_path / result).read_bytes() == before
    assert cli.main([*command, "--ids", "0-11"]) == 0  # the same once more
    assert cli.main([*command, "--ids", "12-23", "--overwrite"]) == 0
    assert (tmp_path / result).read_bytes() != before


def test_pictures_and_tables_of_the_user_are_not_replaced(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["search", "--methods", "ffgsm", "--no-curves", "--ids", "0,1", "--model", str(original), "--quiet"]
    command += ["--data", "digits", "--out", str(tmp_path / "out")]
    mine = tmp_path / "pictures/ffgsm-1.png"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert cli.main([*command, "--png", str(mine.parent)]) == 2
    assert "--png must be a folder without files of these names" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    table = tmp_path / "out/tables/models.csv"
    table.parent.mkdir(parents=True)
    table.write_text("mine")
    assert cli.main([*command, "--tables"]) == 2
    assert "--out must be without a folder tables" in capsys.readouterr().err
    assert table.read_text() == "mine"
    assert cli.main(command) == 0


def test_a_stopped_search_that_replaces_another_resumes(original: Path, tmp_path: Path, monkeypatch) -> None:
    flags = ["search", "--methods", "ffgsm,deepfool", "--no-curves", "--quiet", "--data", "digits"]
    command = [*flags, "--model", str(original), "--out", str(tmp_path)]
    assert cli.main([*command, "--ids", "0-11"]) == 0

    def stopped(*arguments, method, **options):
        if method == "deepfool":
            raise KeyboardInterrupt
        return find_min_adversarial(*arguments, method=method, **options)

    other = [*command, "--ids", "12-23", "--overwrite"]
    with monkeypatch.context() as patched:
        patched.setattr("amun_ext.experiments.searches.find_min_adversarial", stopped)
        assert cli.main(other) == 130
    made = (tmp_path / "ffgsm.safetensors").stat()
    assert cli.main(other) == 0
    again = (tmp_path / "ffgsm.safetensors").stat()
    assert (made.st_ino, made.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)


def test_an_audit_trains_no_model_twice(original: Path, tmp_path: Path) -> None:
    command = ["audit", "--model", str(original), "--original", str(original), "--data", "digits", "--ids", "0-11"]
    command += ["--retrain", "2", "--quiet", "--out", str(tmp_path)]

    def made() -> list[int]:
        return [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("retrained*.safetensors"))]

    assert cli.main(command) == 0
    first = made()
    assert len(first) == 2
    assert cli.main(command) == 0
    assert made() == first
    assert cli.main([*command, "--seed", "1"]) == 0  # the same draws but one
    assert all(new != old for new, old in zip(made(), first, strict=True))
