"""main: parse the arguments, run one command, and report an error in one line."""

import argparse
import errno
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence

from amun_ext.cli.parser import parsed
from amun_ext.cli.process import Ended, ended_by_signals, outputs
from amun_ext.validation import InputError, RefusedResultError, printable

NO_SPACE = 6  # exit status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status, see docs/command-line.md."""
    warnings.showwarning = lambda message, *_, **__: print(f"amun: warning: {printable(str(message))}", file=sys.stderr)
    with outputs() as output:
        options = parsed(sys.argv[1:] if arguments is None else arguments)
        status = _run(options)
        output.flush()
        if output.error is not None and not isinstance(output.error, BrokenPipeError):  # a closed pipe is no failure
            print(f"amun: some output could not be printed: {output.error}", file=sys.stderr)
            return status if hasattr(options, "out") else status or 1  # results in files are complete
        return status


def _run(options: argparse.Namespace) -> int:
    try:
        with ended_by_signals():
            from amun_ext.cli.dispatch import dispatch  # here, because it imports torch

            return dispatch(options)
    except InputError as error:
        return _report("error", str(error), options.debug, 2)
    except RefusedResultError as error:
        return _report("refused", str(error), options.debug, error.status)
    except (OSError, FloatingPointError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        return _report("failed", str(error), options.debug, NO_SPACE if full else 1)
    except (Exception, SystemExit) as error:  # the user's model or data may raise anything
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        return _report("failed", f"{reason} (--debug shows where)", options.debug, 1)
    except KeyboardInterrupt:
        print(f"amun: stopped; {options.stopped}", file=sys.stderr)
        return 128 + signal.SIGINT
    except Ended as ended:
        print(f"amun: ended by {ended.signal.name}; {options.stopped}", file=sys.stderr)
        return 128 + ended.signal


def _report(kind: str, reason: str, debug: bool, status: int) -> int:
    """Print the current exception in one line."""
    if debug:
        traceback.print_exc()
    print(f"amun: {kind}: {printable(reason)}", file=sys.stderr)
    return status
