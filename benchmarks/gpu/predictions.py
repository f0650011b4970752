"""Compares the measured kernels with what was predicted before a GPU had run them.

The predictions are for an H200: the share of a device copy's bandwidth at sizes larger than its
caches, in float32 and bfloat16, and the speed compared with diffusers' eager step (or torch's eager
formula) and with torch.compile's best mode. The share is what memory allows, or what the kernel's
instructions allow if that is less (benchmarks/gpu/issue_limits.py). A prediction is missed if the
measurement is below 0.97 times it (above 1.03 times, for times); smaller differences are the spread
of a quiet machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.gpu.issue_limits import DTYPES, reachable

Row = Mapping[str, Any]
LARGE = "large"
SLACK = 0.03
EAGER, COMPILE = ("diffusers", "torch eager"), ("torch.compile",)


class Kernel(NamedTuple):
    """A kernel's prediction.

    Attributes:
        name: in the table, and in that of its instructions.
        what, mode: of the rows that it is about; mode is None for kernels without noise.
        memory: percent of a copy's bandwidth if instructions were free, in float32 and bfloat16.
        eager, compile: how many times faster than these, in float32 and bfloat16.
    """

    name: str
    what: str
    mode: str | None
    memory: tuple[float, float]
    eager: tuple[float, float] | None
    compile: tuple[float, float] | None

    @property
    def percent(self) -> tuple[float, ...]:
        """Of a copy's bandwidth, in float32 and bfloat16."""
        pairs = zip(DTYPES, self.memory, strict=True)
        return tuple(reachable(self.name, dtype, memory) for dtype, memory in pairs)


KERNELS = (
    Kernel("DDIM step", "step ddim", None, (94, 92), (5, 5), (1.0, 1.0)),
    Kernel("DDPM step, fast", "step ddpm", "fast", (91, 90), (7, 7), (1.5, 2.5)),
    Kernel("DDPM step, exact", "step ddpm", "exact", (91, 90), (7, 4.5), (1.4, 2)),
    Kernel(
        "guidance + step, writes next input", "step ddim guided", None, (90, 80), (6, 6), (1.1, 2)
    ),
    Kernel("DPM++ 2M step", "step dpm++2m", None, (92, 88), (5, 5), (1.0, 1.0)),
    Kernel("UniPC-2 step", "step unipc", None, (90, 88), (7, 7), (1.0, 1.0)),
    Kernel("normal fill, fast", "randn", "fast", (88, 85), (2, 1.8), (2, 1.8)),
    Kernel("q_sample, noise not stored", "q_sample", "fast", (90, 88), (4, 4), (2.2, 3)),
    Kernel("Gaussian KL per sample", "gaussian_kl", None, (88, 85), (18, 16), (1.0, 0.9)),
    # its exact formula has four times the instructions of torch.compile's approximate one
    Kernel("discretised NLL", "discretized_gaussian_nll", None, (88, 85), (5.5, 3), (0.3, 0.2)),
)
GRAPH_STEP_US, GRAPH_EAGER, GRAPH_COMPILE = 4.0, 50.0, 5.0  # at 256×3×32×32
SEEDS_COST, SEEDS_WALL = 0.98, 300.0  # of one seed's speed; times a list of generators


def check(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Returns a line for each prediction: kernel, what, predicted, measured, verdict.

    `measured` is "-" where no row is; `verdict` is "missed", "dry run" or empty.
    """
    return [*_kernels(rows), *_loops(rows)]


def _kernels(rows: Sequence[Row]) -> Iterator[dict[str, str]]:
    copies = [r for r in rows if r["kind"] == "ceiling" and r["what"] == "copy"]
    # the largest: smaller ones may stay in a cache
    copy = max(copies, key=lambda r: r["case"].get("MiB", 0))["GB_per_s"] if copies else None
    for kernel in KERNELS:
        for i, dtype in enumerate(DTYPES):
            row = _fastest(rows, kernel.what, dtype=dtype, mode=kernel.mode, size=LARGE)
            percent = 100 * row["GB_per_s"] / copy if row and copy and row.get("GB_per_s") else None
            yield _line(f"{kernel.name}, {dtype}", "% of copy", kernel.percent[i], percent, row)
            for what, wanted, peers in (
                ("eager", kernel.eager, EAGER),
                ("torch.compile", kernel.compile, COMPILE),
            ):
                if wanted is not None:
                    yield _line(
                        f"{kernel.name}, {dtype}",
                        f"times {what}",
                        wanted[i],
                        _faster(row, peers),
                        row,
                    )


def _loops(rows: Sequence[Row]) -> Iterator[dict[str, str]]:
    for solver in ("ddim", "ddpm"):
        name = f"{solver.upper()} step in a graph, 256×3×32×32"
        row = _fastest(rows, f"graph step {solver}")
        yield _line(name, "µs", GRAPH_STEP_US, row["us"][1] if row else None, row, least=False)
        loop = _fastest(rows, f"loop {solver}")
        yield _line(name, "times diffusers, wall", GRAPH_EAGER, _faster(loop, ("diffusers",)), loop)
        yield _line(name, "times torch.compile", GRAPH_COMPILE, _faster(row, COMPILE), row)
    seeds = _fastest(rows, "step ddpm, a seed per sample")
    one = _faster(seeds, ("fastdiff, one seed",))
    yield _line(
        "a seed per sample, batch 256", "of one seed's speed", SEEDS_COST, one, seeds, slack=0.0
    )
    drawn = _fastest(rows, "randn, a seed per sample")
    yield _line(
        "a seed per sample, batch 256",
        "times generators",
        SEEDS_WALL,
        _faster(drawn, ("a generator a sample",)),
        drawn,
    )


def _fastest(rows: Sequence[Row], what: str, **case: Any) -> Row | None:
    """Returns the fastest backend's row of this case, None without one; a None matches any."""
    case = {k: v for k, v in case.items() if v is not None}
    found = [r for r in rows if r["what"] == what and case.items() <= r["case"].items()]
    return min(found, key=lambda r: r["us"][1], default=None)


def _faster(row: Row | None, peers: Sequence[str]) -> float | None:
    """Returns the ratio to the first of these peers that ran."""
    for peer in peers if row else ():
        found = row["peers"].get(peer, {}) if row else {}
        if "faster" in found:
            return float(found["faster"]["median"])
    return None


def _line(
    kernel: str,
    what: str,
    wanted: float,
    got: float | None,
    row: Row | None,
    *,
    least: bool = True,
    slack: float = SLACK,
) -> dict[str, str]:
    missed = got is not None and (
        got < (1 - slack) * wanted if least else got > (1 + slack) * wanted
    )
    by = (
        f" ({row['backend']})" if row is not None and got is not None and row.get("backend") else ""
    )
    dry = row is not None and got is not None and row["device"] == "cpu"  # not on a GPU
    return {
        "kernel": kernel,
        "what": what,
        "predicted": f"{'≥' if least else '≤'} {wanted:g}",
        "measured": "-" if got is None else f"{got:.3g}{by}",
        "verdict": "dry run" if dry else "missed" if missed else "",
    }
