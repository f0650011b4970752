"""`fastdiff train`: trains a class-conditional U-Net and writes a model folder."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..data import load_fashion_mnist
from ..models import UNet
from ..prediction import PREDICTION_TYPES
from ..schedule import Schedule
from ..trainer import CHECKPOINT, Settings, Trainer, is_run

SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "cosine": Schedule.cosine,
    "linear": Schedule.linear,
    "scaled_linear": Schedule.scaled_linear,
}
DATA = {"fashion-mnist": "bundled-train", "fashion-mnist-full": "train"}


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a class-conditional U-Net",
        description="Train a class-conditional U-Net. `fashion-mnist` is the 9,000 bundled images, "
        "`fashion-mnist-full` the 60,000 of Debian's dataset-fashion-mnist (or --data-root).",
    )
    parser.add_argument("--out", required=True, help="folder for checkpoints, loss curve and the finished model")
    parser.add_argument("--data", choices=sorted(DATA), default="fashion-mnist")
    parser.add_argument("--data-root", help="folder of the full set's IDX files")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--label-dropout", type=float, default=0.1)
    parser.add_argument("--objective", choices=PREDICTION_TYPES, default="v", help="what the network predicts (v)")
    parser.add_argument("--schedule", choices=sorted(SCHEDULES), default="cosine")
    parser.add_argument("--timesteps", type=int, default=1000, help="T of the schedule (1000)")
    parser.add_argument("--widths", default="32,64,96", help="channels per level, finest first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads (torch's default)")
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints (500)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    out = Path(args.out)
    if args.resume and not (out / CHECKPOINT).exists():
        raise ValueError(f"expected a run to resume in {out}, got no {CHECKPOINT}. Leave out --resume to begin one.")
    if not args.resume and is_run(out):
        raise ValueError(f"{out} holds a training run already; pass --resume to continue it, or another --out.")
    try:
        widths = [int(w) for w in args.widths.split(",")]
    except ValueError:
        raise ValueError(f"expected --widths as numbers like 32,64,96, got {args.widths!r}.") from None
    settings = Settings(
        steps=args.steps, batch_size=args.batch_size, lr=args.lr, ema=args.ema, label_dropout=args.label_dropout,
        prediction_type=args.objective, seed=args.seed,
    )  # fmt: skip
    data = load_fashion_mnist(DATA[args.data], args.data_root)
    torch.manual_seed(args.seed)  # the network's first weights
    network = UNet(
        channels=data.images.shape[1], size=data.images.shape[2], num_classes=len(data.classes), widths=widths
    )
    trainer = Trainer(network, SCHEDULES[args.schedule](args.timesteps), data, settings)
    if args.resume:
        trainer.resume(out)
    parameters = sum(p.numel() for p in network.parameters())
    print(f"{parameters:,} parameters, {len(data.images):,} images ({data.name}), {args.steps} steps", flush=True)
    loss = trainer.run(out, save_every=args.save_every)
    print(f"loss {loss:.4f} after {trainer.step} steps; sample it with: fastdiff sample --weights {out} --out samples")
    return 0
