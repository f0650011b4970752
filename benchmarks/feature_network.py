"""Trains the network of FD-fashion and writes the folder that the package ships.

    python -m benchmarks.feature_network --cache DIR        (writes fastdiff/metrics/fashion-mnist)

The network and its training are those of benchmarks/quality.py: six passes over the 60,000 training
images. The weights are stored in float16, and config.json has what they classify correctly.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from benchmarks.quality import cached_classifier, features
from fastdiff.data import DataSet, load_fashion_mnist
from fastdiff.metrics.extractors import FASHION
from fastdiff.pretrained.files import save_folder


@torch.no_grad()
def accuracy(network: nn.Sequential, data: DataSet) -> float:
    """Returns the share of the images that the network classifies correctly."""
    guesses = network[-1](features(network, data.images).clone()).argmax(1)
    return float((guesses == data.labels).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.feature_network", description="The network of FD-fashion."
    )
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder where the classifier is saved"
    )
    parser.add_argument("--data-root", help="folder of the full set's IDX files")
    parser.add_argument("--out", type=Path, default=FASHION)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    train, test = (load_fashion_mnist(split, args.data_root) for split in ("train", "test"))
    network = cached_classifier(args.cache, train)
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    network.load_state_dict({k: v.to(network.state_dict()[k].dtype) for k, v in tensors.items()})
    found = accuracy(network, test)
    config = {
        "network": "fastdiff.metrics.extractors:fashion_network",
        "features": 128,
        "takes": "[-1, 1]",
        "shape": list(train.shape),
        "classes": list(train.classes),
        "trained_on": train.name,
        "test_accuracy": round(found, 4),
        "command": "python -m benchmarks.feature_network --cache runs/judge",
        "torch": torch.__version__,
    }
    save_folder(args.out, config, tensors)
    print(f"{args.out}: {found:.2%} of the test images right")


if __name__ == "__main__":
    main()
