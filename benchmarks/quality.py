"""Measures the quality of the shipped weights' samples by four numbers.

    python -m benchmarks.quality --cache DIR            (writes benchmarks/results/quality.json)

A broken sampler cannot reach all four goals. A small classifier is trained on the 60,000 training
images (and saved in --cache). From guided samples, the same number for each class, it gives:

    agreement   the share of samples that it assigns to the requested class. Alone it proves
                nothing: ten repeated images reach 1.
    diversity   the mean pixel distance between two samples of a class, divided by that of two real
                test images of a class.
    frechet     d² = |m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^(1/2)) between its features of the samples
                and of the training set (Heusel et al. 2017, eq. 6), as a multiple of the 10,000
                test images' d².
    copies      the share of memorised samples: nearer to a training image than 0.3 times the median
                distance of a test image.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from fastdiff import Sampler, __version__
from fastdiff.data import DataSet, load_fashion_mnist
from fastdiff.images import to_uint8
from fastdiff.metrics import Moments, frechet_distance
from fastdiff.metrics.extractors import fashion_network
from fastdiff.pretrained import locate, read_config

GOALS = {
    "agreement": (">=", 0.96),
    "diversity": (">=", 0.8),
    "frechet": ("<=", 100.0),
    "copies": ("<", 0.02),
}
COPY_RADIUS = 0.3
ENOUGH_ACCURACY = 0.92
RESULT = Path(__file__).parent / "results" / "quality.json"


def train_classifier(data: DataSet, epochs: int = 6, batch: int = 128) -> nn.Sequential:
    """Trains with cross-entropy on the images and their mirror images; AdamW with a one-cycle
    learning rate and a fixed seed.
    """
    torch.manual_seed(0)
    network = fashion_network().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    steps = len(data.images) // batch
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=epochs * steps)
    with tqdm(total=epochs * steps * batch, unit="img", desc="classifier") as bar:
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


def cached_classifier(cache: Path, data: DataSet) -> nn.Sequential:
    """Returns the trained classifier, from the cache if it is there."""
    path = cache / "fashion-mnist-classifier.safetensors"
    if path.exists():
        network = fashion_network().eval()
        network.load_state_dict(load_file(path))
        return network
    network = train_classifier(data)
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


def draw(
    args: argparse.Namespace, classes: int, null_label: int
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Returns (samples uint8 [N, 1, 28, 28], labels [N], the settings of the sampler).

    Sample i has the class i mod classes.
    """
    settings: dict[str, Any] = {"solver": "ddim", "steps": args.steps}
    if args.guidance is not None:
        settings["guidance_scale"] = args.guidance
    sampler = Sampler.from_pretrained(args.weights, **settings)
    y = torch.arange(args.samples) % classes
    conditions = {"cond": {"y": y}, "uncond": {"y": torch.full_like(y, null_label)}}
    begin, parts = time.perf_counter(), []
    with tqdm(total=args.samples, unit="img", desc="sampling") as bar:
        for batch in sampler.stream(
            args.samples, (1, 28, 28), batch_size=100, seed=args.seed, **conditions
        ):
            parts.append(to_uint8(batch))
            bar.update(len(batch))
    rate = args.samples / (time.perf_counter() - begin)
    how = {
        "solver": "ddim",
        "steps": args.steps,
        "guidance_scale": sampler.guidance_scale,
        "seed": args.seed,
        "plan": sampler.plan.hash,
        "images_per_second": round(rate, 2),
    }
    return torch.cat(parts), y, how


def measure(
    x: Tensor, y: Tensor, network: nn.Sequential, train: DataSet, test: DataSet
) -> dict[str, float]:
    """Returns the four numbers of samples x with requested classes y."""
    known = features(network, train.images)
    ours, real = features(network, x), features(network, test.images)
    radius = COPY_RADIUS * float(nearest(test.images, train.images).median())
    return {
        "agreement": float((network[-1](ours).argmax(1) == y).float().mean()),
        "diversity": spread(x, y) / spread(test.images, test.labels),
        "frechet": frechet(ours, known) / frechet(real, known),
        "copies": float((nearest(x, train.images) < radius).float().mean()),
    }


def missed(numbers: dict[str, float]) -> list[str]:
    """Returns the goals that these numbers do not reach; NaN reaches none."""
    reached = {">=": lambda v, g: v >= g, "<=": lambda v, g: v <= g, "<": lambda v, g: v < g}
    return [name for name, (sign, goal) in GOALS.items() if not reached[sign](numbers[name], goal)]


def main(argv: list[str] | None = None) -> int:
    """Prints the table, writes the JSON and returns 1 when a goal is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description="Quality of the shipped weights."
    )
    parser.add_argument("--weights", default="fashion-mnist", help="model folder or shipped name")
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder where the classifier is saved"
    )
    parser.add_argument("--data-root", help="folder of the full set's IDX files")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, help="the model's own by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    train, test = (load_fashion_mnist(split, args.data_root) for split in ("train", "test"))
    network = cached_classifier(args.cache, train)
    with torch.inference_mode():
        guesses = network[-1](features(network, test.images)).argmax(1)
        accuracy = float((guesses == test.labels).float().mean())
        print(f"classifier: {accuracy:.2%} of the test images right")
        if accuracy < ENOUGH_ACCURACY:
            print(
                f"expected a classifier with {ENOUGH_ACCURACY:.0%}; remove {args.cache} and run"
                " again",
                file=sys.stderr,
            )
            return 1
        data = read_config(args.weights)["data"]
        x, y, how = draw(args, len(data["classes"]), data["null_label"])
        numbers = measure(x, y, network, train, test)
    wrong = missed(numbers)
    for name, (sign, goal) in GOALS.items():
        print(
            f"{name:10s} {numbers[name]:9.4f}   goal {sign} {goal:g}  "
            f" {'MISSED' if name in wrong else 'reached'}"
        )
    weights = locate(args.weights) / "model.safetensors"
    report = {
        "samples": args.samples,
        **how,
        **{k: round(v, 5) for k, v in numbers.items()},
        "goals": {name: f"{sign} {goal:g}" for name, (sign, goal) in GOALS.items()},
        "missed": wrong,
        "classifier_accuracy": round(accuracy, 4),
        "weights": str(args.weights),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "fastdiff": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
