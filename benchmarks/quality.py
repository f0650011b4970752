"""Measures the quality of the shipped weights' samples by four numbers.

    python -m benchmarks.quality --cache DIR            (writes benchmarks/results/quality.json)

A broken sampler cannot reach all four goals. Classifiers are trained from different weights on
the 60,000 training images (and saved in --cache). The model's own sampler draws guided samples, the
same number for each class, and they give:

    agreement   the share of samples that a classifier assigns to the requested class. Alone it
                proves nothing: ten repeated images reach 1.
    frechet     d² = |m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^(1/2)) between its features of the samples
                and of the training set (Heusel et al. 2017, eq. 6), as a multiple of the 10,000
                test images' d².
    diversity   the mean pixel distance between two samples of a class, divided by that of two real
                test images of a class.
    copies      the share of memorised samples: nearer to a training image than 0.3 times the median
                distance of a test image.

The first two are medians over the classifiers. The samples are kept in --cache too, so a run that
was stopped goes on. `make report` writes the README's section from the result file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from benchmarks import shipped
from fastdiff import Sampler, __version__
from fastdiff.data import DataSet, load_fashion_mnist
from fastdiff.images import to_uint8
from fastdiff.metrics import Moments, frechet_distance
from fastdiff.metrics.extractors import fashion_network
from fastdiff.pretrained import locate, read_config
from fastdiff.sampling.settings import merged

GOALS = {
    "agreement": (">=", 0.98),
    "diversity": (">=", 0.85),
    "frechet": ("<=", 30.0),
    "copies": ("<", 0.02),
}
COPY_RADIUS = 0.3
SEEDS = (1, 2)  # of the classifiers; 0 is that of benchmarks/choosing, by which settings are chosen
CHUNK, BATCH = 500, 50  # samples between two writes, and of a batch
ENOUGH_ACCURACY = 0.92
RESULT = Path(__file__).parent / "results" / "quality.json"


def train_classifier(
    data: DataSet, seed: int = 0, epochs: int = 6, batch: int = 128
) -> nn.Sequential:
    """Trains with cross-entropy on the images and their mirror images; AdamW with a one-cycle
    learning rate.
    """
    torch.manual_seed(seed)
    network = fashion_network().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    steps = len(data.images) // batch
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=epochs * steps)
    with tqdm(total=epochs * steps * batch, unit="img", desc=f"classifier {seed}") as bar:
        for _ in range(epochs):
            for index in torch.randperm(len(data.images))[: steps * batch].split(batch):
                x, y = data.batch(index)
                x = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, x.flip(3), x)
                loss = nn.functional.cross_entropy(network(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rate.step()
                bar.update(batch)
    return network.eval()


def cached_classifier(cache: Path, data: DataSet, seed: int = 0) -> nn.Sequential:
    """Returns the trained classifier of a seed, from the cache if it is there."""
    path = cache / f"fashion-mnist-classifier-{seed}.safetensors"
    if path.exists():
        network = fashion_network().eval()
        network.load_state_dict(load_file(path))
        return network
    network = train_classifier(data, seed)
    cache.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    return network


@torch.inference_mode()
def features(network: nn.Sequential, x: Tensor) -> Tensor:
    """Returns the features [N, 128] float32 of uint8 images [N, 1, 28, 28]."""
    return torch.cat([network[:-1](part.to(torch.float32) / 127.5 - 1.0) for part in x.split(500)])


def frechet(a: Tensor, b: Tensor) -> float:
    """Returns the Fréchet distance of features [N, D] and [M, D] (fastdiff.metrics)."""
    moments = []
    for x in (a, b):
        moments.append(Moments(x.shape[1]))
        moments[-1].add(x)
    return frechet_distance(*moments)


def spread(x: Tensor, labels: Tensor) -> float:
    """Returns the mean pixel distance between two images of a class, averaged over the classes."""
    means = []
    for k in labels.unique():
        flat = x[labels == k].flatten(1).float()
        means.append(torch.pdist(flat).mean())
    return float(torch.stack(means).mean())


def nearest(x: Tensor, known: Tensor) -> Tensor:
    """Returns the pixel distance [N] of each image to the nearest known one."""
    flat = known.flatten(1).float()
    squares = flat.square().sum(1)
    parts = []
    for part in x.flatten(1).float().split(500):
        parts.append(
            (part.square().sum(1) + (squares - 2 * part @ flat.T).amin(1)).clamp_min(0).sqrt()
        )
    return torch.cat(parts)


def draw(args: argparse.Namespace, weights: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Returns (samples uint8 [N, 1, 28, 28], labels [N], how they were drawn).

    Sample i has the class i mod classes. The cache's samples of this run are taken from there.
    """
    chosen: dict[str, Any] = {"steps": args.steps}
    if args.guidance is not None:
        chosen["guidance_scale"] = args.guidance
    sampler = Sampler.from_pretrained(args.weights, **chosen)
    settings = merged(read_config(args.weights)["sampler"], chosen)
    how = {"seed": args.seed, "sampler": settings, "plan": sampler.plan.hash}
    data = read_config(args.weights)["data"]
    y = torch.arange(args.samples) % len(data["classes"])
    null = torch.full_like(y, data["null_label"])

    def part(first: int, n: int) -> Tensor:
        conditions = {"cond": {"y": y[first : first + n]}, "uncond": {"y": null[first : first + n]}}
        batches = sampler.stream(
            n, (1, 28, 28), batch_size=BATCH, first_id=first, seed=args.seed, **conditions
        )
        return torch.cat([to_uint8(batch) for batch in batches])

    return kept(args.cache / f"samples-{run(weights, **how)}.npy", args.samples, part), y, how


def kept(path: Path, samples: int, draw: Callable[[int, int], Tensor]) -> Tensor:
    """Returns the first samples of a .npy file; draw(first, n) makes those that it lacks.

    They are written every CHUNK samples, so a run that was stopped goes on.
    """
    parts = [torch.from_numpy(np.load(path))] if path.exists() else []
    done = sum(map(len, parts))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(total=samples, initial=min(done, samples), unit="img", desc="sampling") as bar:
        while done < samples:
            n = min(CHUNK, samples - done)
            parts = [torch.cat([*parts, draw(done, n)])]
            np.save(path, parts[0].numpy())
            done += n
            bar.update(n)
    return parts[0][:samples]


def run(weights: str, *, seed: int, sampler: dict[str, Any], plan: str) -> str:
    """Returns a name of what decides the samples."""
    decides = json.dumps([weights, plan, sampler, seed], sort_keys=True)
    return hashlib.sha256(decides.encode()).hexdigest()[:16]


def measure(
    x: Tensor, y: Tensor, networks: Sequence[nn.Sequential], train: DataSet, test: DataSet
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Returns (the four numbers of samples x [N, …] with requested classes y [N], and those of each
    classifier).
    """
    judged = []
    for network in networks:
        known, ours, real = (features(network, z) for z in (train.images, x, test.images))
        judged.append(
            {
                "accuracy": share(network, real, test.labels),
                "agreement": share(network, ours, y),
                "frechet": frechet(ours, known) / frechet(real, known),
            }
        )
    radius = COPY_RADIUS * float(nearest(test.images, train.images).median())
    numbers = {
        "agreement": statistics.median(each["agreement"] for each in judged),
        "diversity": spread(x, y) / spread(test.images, test.labels),
        "frechet": statistics.median(each["frechet"] for each in judged),
        "copies": float((nearest(x, train.images) < radius).float().mean()),
    }
    return numbers, judged


def share(network: nn.Sequential, found: Tensor, labels: Tensor) -> float:
    """Returns the share of features that the classifier's last layer assigns to their label."""
    return float((network[-1](found).argmax(1) == labels).float().mean())


def missed(numbers: dict[str, float]) -> list[str]:
    """Returns the goals that these numbers do not reach; NaN reaches none."""
    reached = {">=": lambda v, g: v >= g, "<=": lambda v, g: v <= g, "<": lambda v, g: v < g}
    return [name for name, (sign, goal) in GOALS.items() if not reached[sign](numbers[name], goal)]


def rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in numbers.items()}


def main(argv: list[str] | None = None) -> int:
    """Prints the table, writes the JSON and returns 1 when a goal is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description="Quality of the shipped weights."
    )
    parser.add_argument("--weights", default="fashion-mnist", help="model folder or shipped name")
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder of the classifiers and the samples"
    )
    parser.add_argument("--data-root", help="folder of the full set's IDX files")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, help="the model's own by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    args.cache.mkdir(parents=True, exist_ok=True)
    train, test = (load_fashion_mnist(split, args.data_root) for split in ("train", "test"))
    networks = [cached_classifier(args.cache, train, seed) for seed in SEEDS]
    weights = shipped.digest(locate(args.weights) / "model.safetensors")
    with torch.inference_mode():
        x, y, how = draw(args, weights)
        numbers, judged = measure(x, y, networks, train, test)
    for seed, each in zip(SEEDS, judged, strict=True):
        print(f"classifier {seed}: {each['accuracy']:.2%} of the test images right")
    if min(each["accuracy"] for each in judged) < ENOUGH_ACCURACY:
        print(
            f"expected classifiers with {ENOUGH_ACCURACY:.0%}; remove {args.cache} and run again",
            file=sys.stderr,
        )
        return 1
    wrong = missed(numbers)
    for name, (sign, goal) in GOALS.items():
        print(
            f"{name:10s} {numbers[name]:9.4f}   goal {sign} {goal:g}  "
            f" {'MISSED' if name in wrong else 'reached'}"
        )
    report = {
        "samples": args.samples,
        **how,
        **rounded(numbers),
        "goals": {name: f"{sign} {goal:g}" for name, (sign, goal) in GOALS.items()},
        "missed": wrong,
        "classifiers": [
            {"seed": seed, **rounded(each)} for seed, each in zip(SEEDS, judged, strict=True)
        ],
        "weights": str(args.weights),
        "weights_sha256": weights,
        "fastdiff": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.out == RESULT:
        print(shipped.write_sheet(x, y))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
