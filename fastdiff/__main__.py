"""`python -m fastdiff`: the same as the `fastdiff` command."""

import sys

from .cli import main

sys.exit(main())
