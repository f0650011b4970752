"""The command line: `fastdiff train | sample | resume | …`, a module each with
`register(subparsers)`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from ..jobs.spec import SpecMismatch
from .exits import FAILED, INTERRUPTED, MISMATCH, USAGE, UsageError

COMMANDS = (
    "train",
    "sample",
    "resume",
    "info",
    "verify",
    "export",
    "eval",
    "bench",
    "plan",
    "solvers",
    "doctor",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status, see fastdiff.cli.exits."""
    parser = argparse.ArgumentParser(
        prog="fastdiff", description="Draw samples from diffusion models."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    argv = sys.argv[1:] if argv is None else argv
    named = (
        argv[:1] if argv and argv[0] in COMMANDS else COMMANDS
    )  # a command starts faster without the others
    for name in named:
        importlib.import_module(f".{name}", __name__).register(subparsers)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except (ValueError, TypeError, OSError, RuntimeError, IndexError) as error:
        if args.__dict__.get("traceback"):
            raise
        print(f"fastdiff {args.command}: {error}", file=sys.stderr)
        return (
            USAGE
            if isinstance(error, UsageError)
            else MISMATCH
            if isinstance(error, SpecMismatch)
            else FAILED
        )
    except KeyboardInterrupt:
        print(
            f"fastdiff {args.command}: interrupted. What was finished is on disk.", file=sys.stderr
        )
        return INTERRUPTED
