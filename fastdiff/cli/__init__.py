"""The command line: `fastdiff train | sample | resume | …`.

Each command is a module with `register(subparsers)`, which adds its parser and names its `run`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from ..jobs.spec import SpecMismatch
from ..outside import shown
from ..versions import __version__
from . import completion
from .exit_status import FAILED, INTERRUPTED, MISMATCH, PIPE, USAGE, UsageError
from .output import Parser, output_is_closed, safe_warnings, say

# command: its module, which is imported only where the command is named or all are listed
COMMANDS = {
    "train": "fastdiff.cli.train",
    "data": "fastdiff.cli.data",
    "sample": "fastdiff.cli.sample",
    "resume": "fastdiff.cli.resume",
    "info": "fastdiff.cli.info",
    "verify": "fastdiff.cli.verify",
    "merge": "fastdiff.cli.merge",
    "export": "fastdiff.cli.export",
    "eval": "fastdiff.cli.eval",
    "metrics": "fastdiff.cli.metrics",
    "ema": "fastdiff.cli.ema",
    "bench": "fastdiff.cli.bench",
    "plan": "fastdiff.cli.plan",
    "solvers": "fastdiff.cli.solvers",
    "doctor": "fastdiff.cli.doctor",
}


def parser_of(commands: Sequence[str] = tuple(COMMANDS)) -> Parser:
    """Returns the parser with the subparsers of these commands."""
    parser = Parser(prog="fastdiff", description="Draw samples from diffusion models.")
    parser.add_argument("--version", action="version", version=f"fastdiff {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name in commands:
        importlib.import_module(COMMANDS[name]).register(subparsers)
    return parser


def _complete() -> int:
    """Answers a shell that completes a line; returns the exit status, where it cannot."""
    named = completion.command_of(COMMANDS)
    try:
        completion.complete(parser_of((named,) if named else tuple(COMMANDS)))
    except UsageError as error:
        say(f"fastdiff: {error}", error=True)
    return USAGE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status, see fastdiff.cli.exit_status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if completion.is_asked():
        return _complete()
    if argv[:1] == ["help"]:  # fastdiff help, fastdiff help sample
        argv = [*argv[1:2], "--help"]
    if not argv:
        parser_of().print_help(sys.stderr)
        return USAGE
    # a command starts faster if the others are not imported
    named = argv[:1] if argv and argv[0] in COMMANDS else tuple(COMMANDS)
    args = parser_of(named).parse_args(argv)
    try:
        with safe_warnings():
            status = int(args.run(args) or 0)
        sys.stdout.flush()  # here, where a reader that is gone is no error of the command
        return status
    except (ValueError, TypeError, ImportError, OSError, RuntimeError, IndexError) as error:
        if isinstance(error, BrokenPipeError) and output_is_closed():
            return PIPE
        # one sentence, except for the lines of a mismatch and what torch says
        lines = isinstance(error, (SpecMismatch, RuntimeError))
        say(f"fastdiff {args.command}: {error if lines else shown(error)}", error=True)
        if isinstance(error, UsageError):
            return USAGE
        return MISMATCH if isinstance(error, SpecMismatch) else FAILED
    except SystemExit as error:  # a model's code may end the process, before the work is done
        say(
            f"fastdiff {args.command}: expected the command to return, got an exit with the status"
            f" {error.code!r} from code that it called.",
            error=True,
        )
        return FAILED
    except KeyboardInterrupt:
        say(f"fastdiff {args.command}: interrupted. What was finished is on disk.", error=True)
        return INTERRUPTED
