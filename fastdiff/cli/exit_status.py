"""The exit statuses of the commands.

0 done
1 failed, with one sentence on stderr
2 wrong arguments
3 the folder belongs to another run, or weights or machine differ from the run's
4 a dataset that is incomplete or damaged
5 units with samples that are not finite
75 stopped on request; start the same command again
130 interrupted
141 whatever read the output closed it, as `head` does
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..jobs.samples import DatasetError
from ..jobs.spec import SpecMismatch

FAILED, USAGE, MISMATCH, UNSOUND, NOT_FINITE, AGAIN, INTERRUPTED, PIPE = 1, 2, 3, 4, 5, 75, 130, 141


class UsageError(ValueError):
    """An error in the command's arguments, as opposed to one in its work."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turns errors of the block into UsageError, but for those that have their own status."""
    try:
        yield
    except (SpecMismatch, DatasetError):
        raise
    except (
        ValueError,
        TypeError,
        ImportError,
        FileNotFoundError,
        FileExistsError,
        NotADirectoryError,
        IsADirectoryError,
        IndexError,
    ) as error:
        raise UsageError(str(error)) from error
