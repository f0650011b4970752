"""Draws the pictures of docs/theory/guidance.md: guidance strength, and super-resolution.

    fastdiff train --model classifier --data fashion-mnist-full --out runs/classifier \\
        --widths 16,32,64 --option teacher=fashion-mnist --option matched=0.2 --steps 1500 \\
        --batch-size 128 --lr 3e-3 --warmup 75 --ema 0.99 --weight-decay 0.05
    python examples/guidance.py --cache runs/judge --classifier runs/classifier \\
        --superres runs/superres

The sampled model is the shipped one. Fidelity is the share of samples that the judge, the network
of benchmarks/quality.py, assigns to the requested class. Diversity is the distance between two
samples of a class over that between two images of the class. The Fréchet distance is computed on
the judge's features and divided by that between held-out and training images.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.quality import cached_classifier, features, frechet, spread
from fastdiff import Sampler, to_uint8
from fastdiff.data import load_fashion_mnist
from fastdiff.pretrained import load_system, locate
from fastdiff.pretrained.files import read_tensors, write_tensors

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

BLUE, RED, GREY = "#1b6ca8", "#d1495b", "#888888"
STEPS, BATCH, SHOWN = 20, 100, (-1.0, 0.0, 1.0, 2.0, 4.0, 8.0)


class Judge:
    """Measures samples with the judge's network."""

    def __init__(self, cache: Path, data_root: str | None) -> None:
        self.train, self.test = (load_fashion_mnist(s, data_root) for s in ("train", "test"))
        self.network = cached_classifier(cache, self.train)
        self.train_features = features(self.network, self.train.images)
        held_out = features(self.network, self.test.images)
        self.held_out_frechet = frechet(held_out, self.train_features)
        self.held_out_spread = spread(self.test.images, self.test.labels)

    @torch.no_grad()
    def measure(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Returns fidelity, diversity and Fréchet distance of samples x of the classes y."""
        found = features(self.network, x)
        return {
            "fidelity": float((self.network[-1](found).argmax(1) == y).float().mean()),
            "diversity": spread(x, y) / self.held_out_spread,
            "frechet": frechet(found, self.train_features) / self.held_out_frechet,
        }


def drawn(sampler: Sampler, n: int, **options: Any) -> tuple[Tensor, Tensor]:
    """Returns (samples uint8 [n, 1, 28, 28], labels).

    Sample i has the class i mod 10, and the same noise at every strength.
    """
    parts, y = [], torch.arange(n) % 10
    for ids in torch.arange(n).split(BATCH):
        settings = {k: v(y[ids]) if callable(v) else v for k, v in options.items()}
        parts.append(
            to_uint8(sampler.sample((len(ids), 1, 28, 28), seed=1, sample_ids=ids, **settings))
        )
    return torch.cat(parts), y


def kept(path: Path, draw: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Returns (samples, labels) of a file, which is written if it is not there."""
    if not path.exists():
        x, y = draw()
        write_tensors(path, {"x": x, "y": y})
    found, _ = read_tensors(path)
    return found["x"], found["y"]


def strengths(path: Path, classifier: Path, n: int, judge: Judge, cache: Path) -> dict[str, Any]:
    """Draws the picture of guidance strengths; returns the measurements.

    The samples of each strength are kept in the cache, so that a run that was stopped goes on.
    """
    weights = (classifier / "model.safetensors").read_bytes()
    shipped = (locate("fashion-mnist") / "model.safetensors").read_bytes()
    owner = {
        way: hashlib.sha256(shipped + of).hexdigest()[:16]
        for way, of in (("classifier-free", b""), ("classifier", weights))
    }
    sampler = Sampler.from_pretrained("fashion-mnist", steps=STEPS, guidance_interval=None)
    guide = load_system(classifier)
    null = len(judge.train.classes)
    null_label = lambda y: {"y": torch.full_like(y, null)}  # noqa: E731
    found: dict[str, dict[float, dict[str, float]]] = {"classifier-free": {}, "classifier": {}}
    pictures: dict[str, list[Tensor]] = {"classifier-free": [], "classifier": []}
    for strength in SHOWN:
        for way in found:
            if way == "classifier-free":
                options = {
                    "cond": lambda y: {"y": y},
                    "uncond": null_label,
                    "guidance_scale": strength,
                }
            else:
                options = {
                    "cond": null_label,
                    "guidance_scale": 1.0,
                    "classifier_scale": strength,
                    "classifier": lambda y: guide.log_prob_of(y),
                }  # type: ignore[operator]
            file = cache / f"guidance-{owner[way]}-{STEPS}-{n}-{strength:g}.safetensors"
            x, y = kept(file, functools.partial(drawn, sampler, n, **options))
            found[way][strength] = judge.measure(x, y)
            pictures[way].append(x[:10])
            print(
                way, strength, {k: round(v, 3) for k, v in found[way][strength].items()}, flush=True
            )
    figure = plt.figure(figsize=(12, 6.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    for axis, (way, rows) in zip(top.subplots(1, 2), pictures.items(), strict=True):
        axis.imshow(
            torch.cat([torch.cat(list(row[:, 0]), dim=1) for row in rows]),
            cmap="gray",
            vmin=0,
            vmax=255,
        )
        axis.set(
            yticks=[14 + 28 * i for i in range(len(SHOWN))],
            yticklabels=[f"γ = {s:g}" for s in SHOWN],
            xticks=[],
            title=f"{way} guidance, the same noise",
        )
        axis.tick_params(length=0)
    axes = bottom.subplots(1, 3)
    for axis, name in zip(axes, ("fidelity", "diversity", "frechet"), strict=True):
        for (way, values), color in zip(found.items(), (BLUE, RED), strict=True):
            axis.plot(SHOWN, [v[name] for v in values.values()], "o-", ms=3, color=color, label=way)
        axis.set(xlabel="γ", title={"frechet": "Fréchet distance (held-out = 1)"}.get(name, name))
        axis.axhline(0.1 if name == "fidelity" else 1.0, color=GREY, lw=0.8, ls=":")
    axes[2].set_yscale("log")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=80)
    return found


@torch.no_grad()
def resolution(path: Path, folder: Path, n: int, judge: Judge) -> dict[str, float]:
    """Draws the picture of super-resolution; returns the Fréchet distances."""
    system = load_system(folder)
    network, schedule, settings = system.for_sampler()  # type: ignore[operator]
    sampler = Sampler(network, schedule, solver="ddim", steps=STEPS, **settings)
    x0, y = judge.test.batch(torch.arange(n))
    small = system.reduce(x0)  # type: ignore[operator]
    bicubic, parts = system.enlarge(small), []  # type: ignore[operator]
    for ids in torch.arange(n).split(BATCH):
        cond = {"image": bicubic[ids], "y": y[ids]}
        parts.append(sampler.sample((len(ids), 1, 28, 28), seed=2, sample_ids=ids, cond=cond))
    sharp = torch.cat(parts)
    target = features(judge.network, judge.test.images[:n])
    enlarged = {"bicubic": bicubic, "diffusion": sharp}
    distances = {
        name: frechet(features(judge.network, to_uint8(x)), target) for name, x in enlarged.items()
    }
    off = float((system.reduce(sharp) - small).abs().mean() * 127.5)  # type: ignore[operator]
    print(
        f"{n} enlarged images: Fréchet distance to the originals {distances}; reduced again they"
        f" differ from the input by {off:.2f} levels"
    )
    rows = {
        "input, 14 × 14": F.interpolate(small[:12], scale_factor=2),
        "bicubic": bicubic[:12],
        "diffusion": sharp[:12],
        "original": x0[:12],
    }
    figure, axes = plt.subplots(len(rows), 1, figsize=(9, 3.6), layout="constrained")
    for axis, (title, row) in zip(axes, rows.items(), strict=True):
        axis.imshow(torch.cat(list(row[:, 0].clamp(-1, 1)), dim=1), cmap="gray", vmin=-1, vmax=1)
        axis.set_title(title, fontsize=8, loc="left", pad=2)
        axis.axis("off")
    figure.savefig(path, dpi=90)
    return distances


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--classifier", type=Path, help="folder of `fastdiff train --model classifier`"
    )
    parser.add_argument("--superres", type=Path, help="folder of `fastdiff train --model superres`")
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder for the judge and the samples"
    )
    parser.add_argument("--data-root", help="folder of the full set's IDX files")
    parser.add_argument("--threads", type=int, help="CPU threads (torch's default)")
    parser.add_argument("--samples", type=int, default=1000, help="for each strength (1000)")
    parser.add_argument("--out", type=Path, default=Path("docs/theory/figures"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    judge = Judge(arguments.cache, arguments.data_root)
    found: dict[str, Any] = {}
    if arguments.classifier:
        found["strength"] = strengths(
            arguments.out / "guidance.png",
            arguments.classifier,
            arguments.samples,
            judge,
            arguments.cache,
        )
    if arguments.superres:
        found["superres"] = resolution(
            arguments.out / "superres.png", arguments.superres, arguments.samples, judge
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
