"""Autoregressive models: p(x) = Π_i p(x_i|x_1 … x_{i-1}), a likelihood without a bound.

causal.py   networks whose output i reads the elements before i only
mixture.py  the law of an element, a mixture on levels or of normals
model.py    `Autoregressive`, the trainable system
"""

from .causal import CausalConv, CausalMLP
from .model import Autoregressive

__all__ = ["Autoregressive", "CausalConv", "CausalMLP"]
