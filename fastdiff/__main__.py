"""`python -m fastdiff`, and the `fastdiff` command."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command line; Ctrl-C during its imports ends it without a traceback."""
    try:
        from .cli import main as command

        return command()
    except KeyboardInterrupt:
        print("fastdiff: interrupted.", file=sys.stderr)
        return 130  # INTERRUPTED, whose module may be what could not be imported


if __name__ == "__main__":
    sys.exit(main())
