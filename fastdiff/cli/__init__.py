"""The command line: `fastdiff train | sample | plan | solvers | doctor`, a module each with `register(subparsers)`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = ("train", "sample", "plan", "solvers", "doctor")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0 done, 1 failed with one sentence, 2 bad arguments."""
    parser = argparse.ArgumentParser(prog="fastdiff", description="Draw samples from diffusion models.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name in COMMANDS:
        importlib.import_module(f".{name}", __name__).register(subparsers)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except (ValueError, TypeError, OSError, RuntimeError, IndexError) as error:
        if args.__dict__.get("traceback"):
            raise
        print(f"fastdiff {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"fastdiff {args.command}: interrupted.", file=sys.stderr)
        return 130
