"""Exit statuses of the commands.

0 done; 1 failed, with one sentence; 2 wrong arguments; 3 another run's folder, or other weights or
another machine than the run's; 4 a dataset that is not whole and right; 5 units without finite
samples; 75 stopped on request, to be started again; 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..jobs.spec import SpecMismatch

FAILED, USAGE, MISMATCH, UNSOUND, UNFINITE, AGAIN, INTERRUPTED = 1, 2, 3, 4, 5, 75, 130


class UsageError(ValueError):
    """Wrong arguments."""


@contextmanager
def arguments() -> Iterator[None]:
    """Within the block, what is wrong is wrong with the arguments."""
    try:
        yield
    except SpecMismatch:
        raise
    except (ValueError, TypeError, ImportError, FileNotFoundError, IndexError) as error:
        raise UsageError(str(error)) from error
