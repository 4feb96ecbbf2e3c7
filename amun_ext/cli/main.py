"""main: parse the arguments, run one command, and report an error in one line."""

import argparse
import errno
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence

from amun_ext.cli.parser import parsed
from amun_ext.cli.process import Ended, ended_by_signals, is_other_rank, launched_by_torchrun, outputs
from amun_ext.validation import InputError, RefusedResultError, printable

NO_SPACE = 6  # exit status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status, see docs/command-line.md."""
    warnings.showwarning = lambda message, *_, **__: print(f"amun: warning: {printable(str(message))}", file=sys.stderr)
    with outputs(silent=is_other_rank()) as output:
        options = _parsed(sys.argv[1:] if arguments is None else arguments)
        status = _run(options)
        output.flush()
        if output.error is not None and not isinstance(output.error, BrokenPipeError):  # a closed pipe is no failure
            print(f"amun: some output could not be printed: {output.error}", file=sys.stderr)
            return status if hasattr(options, "out") else status or 1  # results in files are complete
        return status


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    try:
        return parsed(arguments)
    except SystemExit:
        if launched_by_torchrun():
            from amun_ext.cli import ranks

            ranks.join()
            ranks.leave()
        raise


def _run(options: argparse.Namespace) -> int:
    try:
        with ended_by_signals():
            from amun_ext.cli.dispatch import dispatch  # here, because it imports torch

            status = dispatch(options)
            if launched_by_torchrun():
                from amun_ext.cli import ranks

                ranks.leave()
            return status
    except BaseException as error:
        if not launched_by_torchrun():
            return _report(error, options)
        from amun_ext.cli import ranks

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which torchrun ends all ranks with the first
        first, here = ranks.first_failure(error)
        sys.stderr = sys.__stderr__ or sys.stderr  # also of a rank that is silent otherwise
        ranks.end(_report(first, options) if here else _ending(first, options.stopped)[1], here)


def _report(error: BaseException, options: argparse.Namespace) -> int:
    """Print in one line what has ended the command. Returns the exit status."""
    line, status = _ending(error, options.stopped)
    if options.debug and isinstance(error, Exception | SystemExit):
        traceback.print_exception(error)
    print(f"amun: {line}", file=sys.stderr)
    return status


def _ending(error: BaseException, stopped: str) -> tuple[str, int]:
    match error:
        case InputError():
            return f"error: {printable(str(error))}", 2
        case RefusedResultError():
            return f"refused: {printable(str(error))}", error.status
        case OSError() | FloatingPointError():
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            return f"failed: {printable(str(error))}", NO_SPACE if full else 1
        case KeyboardInterrupt():
            return f"stopped; {stopped}", 128 + signal.SIGINT
        case Ended():
            return f"ended by {error.signal.name}; {stopped}", 128 + error.signal
    # the user's model or data may raise anything
    reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
    return f"failed: {printable(reason)} (--debug shows where)", 1
