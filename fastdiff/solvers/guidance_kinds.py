"""Kinds of classifier-free guidance, written into the rows of a finished table.

CFG-Zero* (Fan et al. 2025) multiplies the unconditional output by a number of each sample, and
takes 0 for the output of the first calls. Adaptive projected guidance (APG, Sadat et al. 2024)
leaves out the part of the difference c - u that is parallel to the prediction, bounds its norm and
adds a multiple of the last one. A row says what it does to u (kernels/README.md section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..table import FURTHER, INDEX, KEEPS, OPERANDS, OUTPUTS, PROJECTED, ZERO_STAR
from .options import BOUND, FACTOR_OF_SIGN, SPACE, WHOLE, shown

GUIDANCE_TYPES = ("cfg", "cfg++", "cfg_zero_star", "apg")
"""What guidance does with the unconditional output."""
_KIND = [INDEX[name] for name in FURTHER if name.startswith("guidance_")]
_SLOT_4 = [INDEX[f"s4.{of}"] for of in OPERANDS] + [INDEX[f"{to}.s4"] for to in OUTPUTS]


@dataclass(frozen=True)
class GuidanceKind:
    """A guidance type and its numbers. The defaults of each type are those of the papers' formulas.

    Attributes:
        guidance_type: one of `GUIDANCE_TYPES`.
        zero_init_steps: of cfg_zero_star: how many of the first network calls give 0 instead.
        eta: of apg, like the rest: the share of the parallel part that is kept.
        norm: the largest norm of a sample's difference, or None for no bound.
        momentum: the multiple of the last call's difference that is added.
        space: "x0" for differences of x0, as in the paper, or "output" for the network's.
        base: PROJECTED: the output is c + (gamma - 1) D, with D the difference that is left;
            PROJECTED_FROM_UNCOND: it is u + gamma D.
    """

    guidance_type: str = "cfg"
    zero_init_steps: int = 0
    eta: float = 0.0
    norm: float | None = None
    momentum: float = 0.0
    space: str = "x0"
    base: int = PROJECTED

    @property
    def info(self) -> dict[str, Any]:
        """Returns the settings that a plan's info shows; none for the usual guidance."""
        found: dict[str, Any] = {}
        if self.guidance_type != "cfg":
            found["guidance_type"] = self.guidance_type
        if self.guidance_type == "cfg_zero_star":
            found["zero_init_steps"] = self.zero_init_steps
        if self.guidance_type == "apg":
            for name in ("eta", "norm", "momentum", "space"):
                found[f"apg_{name}"] = getattr(self, name)
        return found

    def write(self, table: NDArray[np.float64], where: str = "fastdiff.Sampler") -> None:
        """Writes the kind into a table's rows, in place.

        Rows without guidance (guidance_weight 0) have no kind. Raises ValueError for momentum where
        the solver needs slot 4 itself.
        """
        calls = np.flatnonzero(table[:, INDEX["network"]])
        guided = [i for i in calls.tolist() if table[i, INDEX["guidance_weight"]] != 0]
        if self.guidance_type == "cfg_zero_star":
            table[guided, INDEX["guidance_kind"]] = ZERO_STAR
            _zero_outputs(table, calls[: self.zero_init_steps])
        elif self.guidance_type == "apg":
            self._project(table, guided, where)

    def _project(self, table: NDArray[np.float64], guided: list[int], where: str) -> None:
        if self.eta == 1 and self.norm is None and self.momentum == 0:
            return  # plain guidance, and its bits
        kind = self.base
        if self.momentum != 0:
            if table[:, _SLOT_4].any():
                raise ValueError(
                    f"{where}: expected a solver with fewer than 4 remembered terms with"
                    " apg_momentum, which needs one, got one with 4. Use a solver of a lower order,"
                    " or apg_momentum 0."
                )
            kind += KEEPS
        last = None
        for row in guided:
            on_x, on_out = table[row, [INDEX["x0_x"], INDEX["x0_out"]]]
            if self.space != "x0":
                on_x, on_out = 0.0, 1.0
            if on_out == 0:  # x0 does not depend on the output
                continue
            table[row, INDEX["guidance_kind"]] = kind
            table[row, INDEX["guidance_parallel"]] = self.eta
            table[row, INDEX["guidance_x"]] = on_x / on_out
            if self.norm is not None:
                table[row, INDEX["guidance_bound"]] = self.norm / abs(on_out)
            if last is not None:  # a remembered difference is one of outputs
                table[row, INDEX["guidance_momentum"]] = self.momentum * (last / on_out)
            last = on_out


def guidance_kind(
    guidance_type: Any,
    *,
    zero_init_steps: Any = None,
    apg_eta: Any = None,
    apg_norm: Any = None,
    apg_momentum: Any = None,
    apg_space: Any = None,
) -> GuidanceKind:
    """Returns the checked kind of these options of `fastdiff.Sampler`; None stands for a default.

    Raises ValueError for values outside their domains, and for options of another type.
    """
    where = "fastdiff.Sampler"
    if not isinstance(guidance_type, str) or guidance_type not in GUIDANCE_TYPES:
        raise ValueError(
            f"{where}: expected guidance_type in {list(GUIDANCE_TYPES)}, got"
            f" {shown(guidance_type)}."
        )
    given = {
        "zero_init_steps": (zero_init_steps, WHOLE),
        "apg_eta": (apg_eta, FACTOR_OF_SIGN),
        "apg_norm": (apg_norm, BOUND),
        "apg_momentum": (apg_momentum, FACTOR_OF_SIGN),
        "apg_space": (apg_space, SPACE),
    }
    checked: dict[str, Any] = {}
    for name, (value, domain) in given.items():
        if value is None:
            continue
        owner = "cfg_zero_star" if name == "zero_init_steps" else "apg"
        value = domain.check(name, value)
        if guidance_type != owner:
            raise ValueError(
                f"{where}: expected guidance_type {owner!r} with {name}, got {guidance_type!r}."
            )
        checked[name.removeprefix("apg_")] = value
    if guidance_type == "cfg_zero_star":
        checked.setdefault("zero_init_steps", 1)
    return GuidanceKind(guidance_type, **checked)


def _zero_outputs(table: NDArray[np.float64], rows: NDArray[np.intp]) -> None:
    """Makes rows read 0 as the network's output: x0 and all combinations do without it.

    Such a row calls no network, unless its noise has the network's variance.
    """
    reads = ["x0_out", "guidance_rescale", "out_grad", "out_uncond"]
    cleared = [INDEX[name] for name in reads] + [INDEX[f"{to}.out"] for to in OUTPUTS] + _KIND
    table[rows[:, None], cleared] = 0.0
    learned = table[rows, INDEX["noise_mode"]] == 1
    table[rows, INDEX["network"]] = learned
