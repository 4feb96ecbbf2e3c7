"""amun replay: repeat a request from its record, and compare the models."""

import argparse
import contextlib
import io
from pathlib import Path

from safetensors.torch import load_file

from amun_ext import info
from amun_ext.cli.dispatch import dispatch
from amun_ext.cli.parser import parsed
from amun_ext.deletion import ledger
from amun_ext.deletion.results import FORMAT, MODEL
from amun_ext.files import file_digest
from amun_ext.reading import read_json
from amun_ext.validation import InputError, differences, is_integer, printable, require

OTHER = 7  # exit status


def _parsed(command: list[str]) -> argparse.Namespace:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
        try:
            return parsed(command)
        except SystemExit:  # which argparse raises after a message, and after --help
            reason = told.getvalue().strip() or "--help"
    raise InputError(f"record must be of a command that this version of amun takes, got {reason}")


def run(options: argparse.Namespace) -> int:
    path = options.record
    record = read_json(path, "record", "the record.json of amun forget")
    ours = isinstance(record, dict) and record.get("format") == FORMAT
    command: list[str] = record.get("command", []) if ours else []
    fits = isinstance(command, list) and all(isinstance(each, str) for each in command) and command[:1] == ["forget"]
    require(fits, "record", "the record.json of amun forget", path)
    again = _parsed(command)
    code = [each for each in (again.arch, again.data) if each and ":" in each and not Path(each).is_dir()]
    unnamed = [printable(each) for each in code if each not in options.code]
    require(not unnamed, "--code", "given for all code that the request uses", f"nothing for {', '.join(unnamed)}")
    require(not options.out.exists(), "--out", "a new folder", options.out)
    same = again.model.is_file() and file_digest(again.model) == record.get(ledger.PARENT)
    require(same, "record", f"of the model in {printable(str(again.model))}", "of another, or there is none")
    again.out, again.quiet, again.debug = options.out, options.quiet, options.debug
    again.overwrite, again.download, again.sign_key, again.replays = False, False, None, True
    if again.pending is not None:
        ids = record.get("ids")
        require(isinstance(ids, list) and all(map(is_integer, ids)), "record", "with the ids of its requests", path)
        again.pending, again.ids = None, ",".join(map(str, ids))
    status = dispatch(again)
    if status not in (0, 3):
        return status
    if file_digest(options.out / MODEL) == record.get(ledger.CHILD):
        print("the models are bit-equal")
        return 0
    print(_difference(path.parent / MODEL, options.out / MODEL, record.get(ledger.CHILD)))
    versions = record.get("versions")
    others = differences(versions if isinstance(versions, dict) else {}, info.versions())
    print(printable(f"versions: {others or 'the same'}"))
    return OTHER


def _difference(first: Path, second: Path, digest: object) -> str:
    """The largest difference of a weight, if the first model is the one of the record."""
    if not first.is_file() or file_digest(first) != digest:
        return f"the models differ; the model of the record is not in {first.parent}"
    one, other = load_file(first), load_file(second)
    apart = [float((one[name].double() - other[name].double()).abs().max()) for name in one if one[name].numel()]
    return f"the models differ, by at most {max(apart):.3g} in a weight"
