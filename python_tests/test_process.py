"""How a command ends: by a signal, with its output closed or full, on a terminal without our letters, in a log file;
and what it does when it has ended before."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kill_tools import HANG
from safetensors import safe_open
from training_tools import SMALL_TRAINING

from amun_ext import cli
from amun_ext.cli.process import Output
from amun_ext.deletion import Record
from amun_ext.deletion.results import RESULTS
from amun_ext.progress import progress_bar


def forget(original: Path, out: Path, *more: str) -> list[str]:
    return ["forget", "--model", str(original), "--data", "digits", "--epochs", "1", "--out", str(out), *more]


def facts(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())["facts"]


class TestSignals:
    @pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")])
    def test_a_signal_ends_a_command_cleanly(self, original, tmp_path, capsys, monkeypatch, number, name) -> None:
        before = signal.signal(number, signal.SIG_DFL)  # also where it was ignored, as under nohup
        try:
            with monkeypatch.context() as patch:
                patch.setattr("amun_ext.unlearning.config.unlearn", lambda *_, **__: signal.raise_signal(number))
                assert cli.main(forget(original, tmp_path / "out", "--ids", "5,6")) == 128 + number
            assert signal.getsignal(number) == signal.SIG_DFL
        finally:
            signal.signal(number, before)
        last = capsys.readouterr().err.splitlines()[-1]
        assert last == f"amun: ended by {name}; run the same command again to resume"
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["unfinished-forget"]
        assert cli.main(forget(original, tmp_path / "out", "--ids", "5,6")) == 0

    def test_an_ignored_signal_stays_ignored(self, original, tmp_path, monkeypatch) -> None:
        """As nohup has it."""
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            monkeypatch.setattr("amun_ext.cli.forget.check_folder", lambda _: signal.raise_signal(signal.SIGHUP))
            assert cli.main(forget(original, tmp_path / "out", "--ids", "5,6")) == 0
        finally:
            signal.signal(signal.SIGHUP, before)

    @pytest.mark.slow
    @pytest.mark.parametrize("to", ["the command", "all of its processes"])
    def test_workers_end_silently(self, original, tmp_path, to: str) -> None:
        """While they begin, which is when the other end of what they read is lost."""
        command = ["references", "--model", str(original), "--data", "digits", "--num-models", "2", "--workers", "2"]
        process = command_line([*command, "--out", str(tmp_path / "out")], start_new_session=True)
        while len(children_of(process.pid)) < 2:  # the first is Python's own tracker of resources
            assert process.poll() is None, process.stderr.read()
        (os.killpg if to != "the command" else os.kill)(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=HANG)
        assert process.returncode == 143, errors
        assert errors.splitlines()[-1] == "amun: ended by SIGTERM; run the same command again to resume"
        assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("start", "module", "status", "told"),
    [
        (["-c", "import amun_command; amun_command.main()"], "argparse", -signal.SIGINT, ""),
        (["-m", "amun_ext"], "argparse", -signal.SIGINT, ""),
        (["-m", "amun_ext", "info"], "torch", 130, "amun: stopped; no file is half-written\n"),
    ],
)
def test_an_interrupt_during_the_imports_leaves_no_traceback(tmp_path: Path, start, module, status, told) -> None:
    (tmp_path / f"{module}.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])}
    ended = subprocess.run(
        [sys.executable, *start],
        env=environment() | path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # in the background it would be ignored
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "", told)


def test_python_m_imports_nothing_else_from_the_current_folder(tmp_path: Path) -> None:
    for name in ("html", "json", "matplotlib"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the decoy')\n")
    command = [sys.executable, "-m", "amun_ext", "info"]
    ended = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


class TestOutput:
    @pytest.mark.parametrize(
        ("redirection", "status", "told"),
        [(">/dev/full", 0, "could not be printed: [Errno 28]"), ("2>&-", 0, ""), ("<&- >&- 2>&-", 0, "")],
    )
    def test_results_are_kept(self, original, tmp_path, redirection, status, told) -> None:
        command = forget(original, tmp_path / "out", "--ids", "5,6")
        line = " ".join([sys.executable, "-m", "amun_ext", *command, redirection])
        ended = subprocess.run(line, shell=True, env=environment(), capture_output=True, text=True)
        assert ended.returncode == status, ended.stderr
        assert told in ended.stderr
        assert "Traceback" not in ended.stderr
        assert {path.name for path in (tmp_path / "out").iterdir()} == {*RESULTS}

    def test_a_closed_pipe_is_no_failure(self) -> None:
        read, write = os.pipe()
        os.close(read)
        with open(write, "w") as pipe:
            output = Output(pipe)
            output.write("a line\n")
            output.flush()
            output.write("another\n")
            output.flush()
        assert isinstance(output.error, BrokenPipeError)

    def test_letters_outside_the_encoding_are_escaped(self) -> None:
        terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        output = Output(terminal)
        output.write("caf\udce9 \u2603\n")
        output.flush()
        assert terminal.buffer.getvalue() == b"caf\\udce9 \\u2603\n"

    def test_a_command_without_files_fails_if_its_output_does(self, monkeypatch, capsys) -> None:
        with open("/dev/full", "w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            assert cli.main(["info"]) == 1

    @pytest.mark.parametrize("name", ["caf\udce9", "caf\udce9/in"])
    def test_a_folder_that_is_not_utf8_is_refused_before_work(self, original, tmp_path, refused, name) -> None:
        refused(forget(original, tmp_path / name, "--ids", "5"), r"--out must be a name in UTF-8, got '.*caf\\udce9")
        assert not [*tmp_path.iterdir()]

    def test_nor_is_a_file(self, original, tmp_path, refused) -> None:
        out = str(tmp_path / "caf\udce9.safetensors")
        refused(["train", "--data", "digits", "--model", "small-cnn", "--out", out], r"--out must be a name in UTF-8")
        refused(["prepare", "--model", str(original), "--data", "digits", "--out", out], r"--out must be a name in UTF")
        assert not [*tmp_path.iterdir()]


class TestProgress:
    def test_one_line_a_stage_in_a_log(self, capsys) -> None:
        with progress_bar(True, total=3, desc="train", unit="epoch") as bar:
            for loss in (0.3, 0.2, 0.1):
                bar.set_postfix({"loss": f"{loss:.1f}"})
                bar.update()
        assert re.fullmatch(r"train: 3 of 3 in 00:00, loss=0\.1\n", capsys.readouterr().err)

    def test_no_progress_unless_shown(self, capsys) -> None:
        assert [*progress_bar(False, range(3), "train")] == [0, 1, 2]
        assert capsys.readouterr().err == ""

    def test_a_bar_on_a_terminal(self, capsys, monkeypatch) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        assert [*progress_bar(True, range(3), "train")] == [0, 1, 2]
        assert "\rtrain: 100%" in capsys.readouterr().err


class TestAgain:
    """A request that is done is not done again, and another's result is not written over."""

    def test_forget(self, original, tmp_path, capsys, monkeypatch) -> None:
        out = tmp_path / "out"
        assert cli.main(forget(original, out, "--ids", "5,6")) == 0
        first = (out / "model.safetensors").read_bytes()
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr("amun_ext.deletion.forget", lambda *_, **__: pytest.fail("it was done"))
            assert cli.main(forget(original, out, "--ids", "6,5")) == 0
            date = facts(out)["date"]
            told = f"already done: the request of {date} to forget 5, 6 in {out}\n"
            assert capsys.readouterr().out.endswith(told)
            for other in (["--ids", "5"], ["--ids", "5,6", "--seed", "1"], ["--ids", "5,6", "--with-images"]):
                assert cli.main(forget(original, out, *other)) == 2
                told = f"--out must be a folder without another result (--overwrite replaces it), got {out}, with "
                assert told + f"the request of {date} to forget 5, 6\n" in capsys.readouterr().err
        assert (out / "model.safetensors").read_bytes() == first
        assert cli.main(forget(original, out, "--ids", "5", "--overwrite")) == 0
        assert facts(out)["ids"] == [5]
        assert {path.name for path in out.iterdir()} == {*RESULTS}

    def test_a_changed_report_is_not_trusted(self, original, tmp_path, refused) -> None:
        out = tmp_path / "out"
        assert cli.main(forget(original, out, "--ids", "5,6")) == 0
        told = json.loads((out / "report.json").read_text())
        for missing in (None, 5, "\x1b[31m3", [3.5], [True]):
            told["facts"] |= {"ids_without_example": missing, "date": "\x1b[31m\nnow"}
            (out / "report.json").write_text(json.dumps(told))
            where = re.escape(r"with the request of \x1b[31m\nnow to forget 5, 6")
            refused(forget(original, out, "--ids", "5,6"), where)

    def test_an_incomplete_result_is_not_finished(self, original, tmp_path, refused) -> None:
        out = tmp_path / "out"
        assert cli.main(forget(original, out, "--ids", "5,6")) == 0
        with (out / "model.safetensors").open("ab") as file:
            file.write(b" ")
        assert cli.main(forget(original, out, "--ids", "5,6")) == 2
        (out / "report.json").unlink()
        refused(forget(original, out, "--ids", "5,6"), r"with model\.safetensors, report\.html")

    def test_train(self, original, tmp_path, capsys) -> None:
        out = tmp_path / "model.safetensors"
        out.write_bytes(first := original.read_bytes())
        assert cli.main([*SMALL_TRAINING.split(), "--out", str(out)]) == 0
        assert capsys.readouterr().out == f"already done: this training's model is in {out}\n"
        other = [*SMALL_TRAINING.split(), "--seed", "1", "--out", str(out)]
        assert cli.main(other) == 2
        assert f"got {out}, a model with other seed\n" in capsys.readouterr().err
        assert out.read_bytes() == first
        assert cli.main([*other, "--overwrite"]) == 0
        assert out.read_bytes() != first
        (tmp_path / "notes.safetensors").write_text("no checkpoint")
        assert cli.main([*SMALL_TRAINING.split(), "--out", str(tmp_path / "notes.safetensors")]) == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "notes.safetensors"]

    def test_equal_requests_give_equal_files(self, original, tmp_path) -> None:
        """And the times are in the report, by the digest of the model, where an audit finds them."""
        from amun_ext.cli.provenance import seconds

        for name in ("one", "two"):
            assert cli.main(forget(original, tmp_path / name, "--ids", "5,6")) == 0
        one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        told = facts(tmp_path / "one")
        assert {"model": "model.safetensors", "data": "digits"}.items() <= told.items()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told["date"])
        sha256 = subprocess.run(["sha256sum", original, one], capture_output=True, text=True, check=True).stdout
        assert [line.split()[0] for line in sha256.splitlines()] == [
            told["model_digest"],
            told["new_model_digest"],
        ]
        assert seconds(one, Record()) == told["seconds_by_digest"][told["new_model_digest"]] > 0
        with safe_open(one, "pt") as file:
            assert "seconds" not in file.metadata()
        assert seconds(original, Record()) is None
        assert seconds(original, Record(seconds=2.5)) == 2.5  # of a checkpoint that says it itself


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(cli.__file__).parents[2])}


def command_line(arguments: list[str], **how: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "amun_ext", *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
