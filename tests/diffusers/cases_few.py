"""The suite's cases of distilled networks, flow matching, RePaint, unCLIP and consistency models."""

from __future__ import annotations

from case import Case

FEW: list[Case] = []
