"""The fused ops: validate, choose a backend, launch, differentiate; registered with torch.library as `fastdiff::…`."""

from .q_sample import q_sample
from .randn import randn
from .reverse_step import reverse_step

__all__ = ["q_sample", "randn", "reverse_step"]
