"""Samples of the shipped weights, solver by solver: Fréchet distance, agreement, diversity.

The numbers are those of benchmarks/quality.py, with a classifier of another seed. All cells have
the same noise and the same classes. Samples are kept in the cache, so a run that was stopped goes
on, and a run with more samples draws only the new ones: sample i is the same in any run. Cells of
other weights are dropped.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import shipped
from benchmarks.choosing.results import RESULT, read, write
from benchmarks.quality import BATCH, cached_classifier, features, frechet, kept, spread
from fastdiff import Sampler, __version__, accelerate
from fastdiff.data import DataSet, load_fashion_mnist
from fastdiff.images import to_uint8
from fastdiff.pretrained import load, locate, read_config
from fastdiff.sampling.settings import merged
from fastdiff.solvers import SOLVERS

MODEL = "fashion-mnist"
SEED = 0
OWN, STRONG = 1.9, 4.0  # the model's own guidance, and a strong one
COMPARED = (
    "ddim",
    "dpm++2m",
    "unipc",
    "ipndm",
    "er_sde",
    "deis",
    "res_2m",
    "heun",
    "euler_ancestral",
    "dpm++2m_sde",
)
LONGER = ("ddim", "dpm++2m", "unipc", "ipndm", "er_sde", "dpm++2m_sde")  # with 20 calls too
GUIDED = ("dpm++2m", "unipc", "ipndm")
GRIDS = ("ays_sdxl", "exponential", "kl_optimal", "karras", "beta57", "linspace")
FITTED = ("dpm++2m", "ipndm", "unipc", "er_sde")  # on the grid that is best for dpm++2m
REPEATED = ("ddim", "dpm++2m", "unipc", "ipndm")  # with as many samples of other noise
# of the picture: solvers and grids, and samples: shirt, trouser, dress, sandal, bag, boot
SHOWN = (("ddim", "trailing"), ("dpm++2m", "trailing"), ("ipndm", GRIDS[0]), ("er_sde", GRIDS[0]))
SHOWN_CALLS = (5, 10, 20)
SHOWN_IDS = (0, 1, 3, 5, 8, 9)


class Cell(NamedTuple):
    """One measurement: a solver with at most so many network calls on a grid, guided."""

    solver: str
    grid: str
    calls: int
    guidance: float

    @property
    def steps(self) -> int:
        """The most steps with at most `calls` network calls."""
        count = SOLVERS[self.solver].network_calls
        return max(n for n in range(1, self.calls + 1) if count(n) <= self.calls)

    @property
    def file(self) -> str:
        return f"{self.solver}-{self.grid}-{self.calls}-{self.guidance:g}.npy"

    def is_of(self, row: dict[str, Any]) -> bool:
        return all(row[name] == value for name, value in self._asdict().items())


def cells() -> list[Cell]:
    """Returns all cells, in the order in which they are measured."""
    found = [
        *(Cell(solver, "trailing", 10, OWN) for solver in COMPARED),
        *(Cell(solver, "trailing", 5, OWN) for solver in COMPARED),
        *(Cell("dpm++2m", grid, 10, OWN) for grid in GRIDS),
        *(Cell(solver, GRIDS[0], n, OWN) for n in (10, 5, 20) for solver in FITTED),
        *(Cell("ipndm", "kl_optimal", n, OWN) for n in (10, 20)),
        *(Cell(solver, grid, 10, STRONG) for grid in ("trailing", GRIDS[0]) for solver in GUIDED),
        *(Cell(solver, "trailing", 20, OWN) for solver in LONGER),
    ]
    return list(dict.fromkeys(found))


class Judge:
    """Measures samples: the classifier, and the features of the data."""

    def __init__(self, network: nn.Sequential, train: DataSet, test: DataSet) -> None:
        self.network, self.test = network, test
        self.known = features(network, train.images)
        self.real = features(network, test.images)
        self.unit = frechet(self.real, self.known)
        self.spread = spread(test.images, test.labels)

    @classmethod
    def of(cls, cache: Path, data_root: str | None) -> Judge:
        train, test = (load_fashion_mnist(split, data_root) for split in ("train", "test"))
        return cls(cached_classifier(cache, train), train, test)

    @torch.inference_mode()
    def measure(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Returns the numbers of samples x uint8 [N, 1, 28, 28] with requested classes y [N]."""
        ours = features(self.network, x)
        return {
            "frechet": round(frechet(ours, self.known) / self.unit, 2),
            "agreement": round(float((self.network[-1](ours).argmax(1) == y).float().mean()), 4),
            "diversity": round(spread(x, y) / self.spread, 4),
        }

    def of_data(self, n: int) -> dict[str, float]:
        """Returns the numbers of the first n test images."""
        return self.measure(self.test.images[:n], self.test.labels[:n])


class Drawer:
    """Draws samples of the shipped model, whose network is accelerated once for all cells."""

    def __init__(self) -> None:
        network, self.schedule, self.settings = load(MODEL)
        self.network = accelerate(network)
        data = read_config(MODEL)["data"]
        self.shape, self.null = tuple(data["shape"]), int(data["null_label"])
        self.classes = len(data["classes"])

    def sampler(self, cell: Cell) -> Sampler:
        chosen = {
            "solver": cell.solver,
            "steps": cell.steps,
            "timestep_spacing": cell.grid,
            "guidance_scale": cell.guidance,
            "guidance_interval": None,
        }
        return Sampler(self.network, self.schedule, **merged(self.settings, chosen))

    def labels(self, first: int, n: int) -> Tensor:
        return torch.arange(first, first + n) % self.classes

    def draw(self, cell: Cell, first: int, n: int) -> Tensor:
        """Returns samples first … first + n - 1, uint8 [n, …]."""
        y = self.labels(first, n)
        conditions = {"cond": {"y": y}, "uncond": {"y": torch.full_like(y, self.null)}}
        batches = self.sampler(cell).stream(
            n, self.shape, batch_size=BATCH, first_id=first, seed=SEED, **conditions
        )
        return torch.cat([to_uint8(batch) for batch in batches])


def digest() -> str:
    """Returns the SHA-256 of the shipped weights' file."""
    return shipped.digest(locate(MODEL) / "model.safetensors")


def of_these_weights(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of the result file, which is emptied if it is of other weights."""
    part: dict[str, Any] = content.setdefault("weights", {})
    if part.get("sha256") != digest():
        part.clear()
        part["sha256"] = digest()
    return part


def cached(cell: Cell, samples: int, cache: Path, drawer: Drawer) -> Tensor:
    """Returns the cell's samples, of which those that the cache lacks are drawn and kept."""
    draw = functools.partial(drawer.draw, cell)
    return kept(cache / digest()[:12] / cell.file, samples, draw)


def measure(
    judge: Judge,
    cache: Path,
    *,
    samples: int,
    minutes: float,
    wanted: Sequence[Cell] | None = None,
    path: Path = RESULT,
) -> int:
    """Measures the cells that the result file lacks, until the time is up; returns how many."""
    drawer, end, found = Drawer(), time.monotonic() + 60 * minutes, 0
    for cell in cells() if wanted is None else wanted:
        rows = of_these_weights(read(path)).get("cells", [])
        if any(cell.is_of(row) and row["samples"] == samples for row in rows):
            continue
        if time.monotonic() > end:
            print(f"{minutes:g} minutes are over; the next run goes on", file=sys.stderr)
            break
        begin = time.process_time()
        x = cached(cell, samples, cache, drawer)
        numbers = judge.measure(x, drawer.labels(0, samples))
        row = {**cell._asdict(), "steps": cell.steps, "samples": samples, **numbers}
        content = read(path)  # as it is now: this took minutes
        part = of_these_weights(content)
        part["cells"] = [r for r in part.get("cells", []) if not cell.is_of(r)] + [row]
        part.setdefault("real", {})[str(samples)] = judge.of_data(samples)
        part["fastdiff"], part["torch"] = __version__, torch.__version__
        write(content, path)
        found += 1
        print(f"{time.process_time() - begin:6.0f} s  {row}", flush=True)
    return found


def repeat(judge: Judge, cache: Path, *, samples: int, path: Path = RESULT) -> None:
    """Measures some cells again, with the next samples: how far noise and classes move them."""
    drawer, found = Drawer(), {}
    for solver in REPEATED:
        both = cached(Cell(solver, "trailing", 10, OWN), 2 * samples, cache, drawer)
        halves = [(0, both[:samples]), (samples, both[samples:])]
        numbers = [judge.measure(x, drawer.labels(first, samples)) for first, x in halves]
        found[solver] = [each["frechet"] for each in numbers]
    content = read(path)
    of_these_weights(content)["repeated"] = found
    write(content, path)


def shown(cache: Path) -> dict[tuple[str, int], np.ndarray]:
    """Returns the samples of the picture, by solver and number of calls: uint8 [6, 1, 28, 28].

    They are in the cache after `measure`, or are drawn.
    """
    drawer, enough = Drawer(), max(SHOWN_IDS) + 1
    found = {}
    for solver, grid in SHOWN:
        for calls in SHOWN_CALLS:
            x = cached(Cell(solver, grid, calls, OWN), enough, cache, drawer)
            found[f"{solver}\n{grid}", calls] = x[list(SHOWN_IDS)].numpy()
    return found
