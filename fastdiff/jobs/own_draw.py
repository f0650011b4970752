"""Models that draw their samples themselves: VAEs and hierarchies, whose samples take no steps.

A unit is one call `draw(n, seed=, sample_ids=)`, a pure function of the seed and the ids, of the
unit's fixed size. It is therefore as repeatable as a unit that a sampler draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..solvers import Plan
from ..table import COLUMNS
from .models import Model
from .spec import RunSpec

# a table without rows: the spec says by `drawer` that the model draws its samples itself
PLAN = Plan(np.zeros((1, len(COLUMNS))), {"drawer": "sample"})
# what such a model may be told of those settings that are a sampler's: its network is float32
_PERMITTED = (("dtype", "auto"), ("dtype", "fp32"))


def check(model: Model, settings: Mapping[str, Any], **others: Any) -> None:
    """Raises ValueError for settings that the model does not have.

    others: further settings of a sampler, None where they are not given.
    """
    known = model.draw_settings
    given = {k: v for k, v in others.items() if v is not None and (k, v) not in _PERMITTED}
    for name in [*settings, *given]:
        if name not in known:
            named = f"only {', '.join(known)}" if known else "none"
            raise ValueError(
                f"fastdiff.jobs: expected settings of {model!r}, which draws its samples itself"
                f" and takes {named}, got {name}. Leave it out."
            )


def samples(model: Model, spec: RunSpec, block: range, device: torch.device) -> Tensor:
    """Returns the samples of a block of ids, float32 [n, *shape]."""
    assert model.draw is not None
    ids = torch.arange(block.start, block.stop, device=device)
    x = model.draw(len(block), seed=spec.seed, sample_ids=ids, **dict(spec.sampling))
    expected = [len(block), *model.shape]
    if list(x.shape) != expected:
        raise ValueError(
            f"fastdiff.jobs: expected samples {expected} of {model!r}, got {list(x.shape)}."
        )
    return x.float()
