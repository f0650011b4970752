"""The flags of `fastdiff train` for the trainer: a run, its records and how it is computed."""

from __future__ import annotations

import argparse
from typing import Any

from .exit_status import UsageError
from .options import parse_value

# the settings of a run in its folder, with their defaults; `fastdiff.training.Settings`
SETTINGS: dict[str, Any] = {
    "batch_size": 64,
    "lr": 1e-3,
    "warmup": 100,
    "ema": 0.999,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
    "seed": 0,
    "betas": [0.9, 0.99],
    "precision": "float32",
    "fused": True,
    "accelerate": True,
    "ema_rel": [],
    "ema_snapshots": 0,
}
# how steps are computed, which a resumed run may change
RESOURCES: dict[str, Any] = {
    "accumulate": 1,
    "checkpoint_activations": False,
    "compile": False,
    "workers": 0,
}
# arguments of `Trainer.run`
RECORDS = ("save_every", "keep", "sample_every", "eval_every", "eval_images", "log")


def add_settings(group: Any) -> None:
    """Adds the flags of SETTINGS, and --steps."""
    group.add_argument(
        "--steps",
        type=int,
        help="optimiser steps; the learning rate decays to 0 (1000; for points 1500)",
    )
    group.add_argument(
        "--batch-size", type=int, help="examples per step, of all ranks (64; for points 256)"
    )
    group.add_argument("--lr", type=float, help="highest learning rate (0.001; for points 0.002)")
    group.add_argument("--warmup", type=int, help="steps over which the learning rate rises (100)")
    group.add_argument(
        "--ema", type=float, help="decay of the averaged weights, which are saved (0.999)"
    )
    group.add_argument(
        "--ema-rel",
        type=_numbers,
        help="relative lengths of further averages, such as 0.05,0.1: `fastdiff ema` then makes an"
        " average of any length (none)",
    )
    group.add_argument(
        "--ema-snapshots", type=int, help="steps between their snapshots (a 16th of the run)"
    )
    group.add_argument("--weight-decay", type=float, help="AdamW's (0)")
    group.add_argument("--betas", type=_numbers, help="AdamW's (0.9,0.99)")
    group.add_argument(
        "--fused",
        action=argparse.BooleanOptionalAction,
        help="AdamW in one kernel (yes; runs that began without continue without)",
    )
    group.add_argument(
        "--accelerate",
        action=argparse.BooleanOptionalAction,
        help="faster convolutions on the CPU (yes; runs that began without continue without)",
    )
    group.add_argument("--clip-norm", type=float, help="largest gradient norm (1)")
    group.add_argument(
        "--precision", help="float32, or bf16: products and convolutions in bfloat16 (float32)"
    )
    group.add_argument("--seed", type=int, help="of weights, order, times and noise (0)")


def add_resources(group: Any) -> None:
    """Adds the flags of RESOURCES, and of processes that train together."""
    group.add_argument(
        "--accumulate",
        type=int,
        help="parts of a batch computed one after the other, for less memory (1)",
    )
    group.add_argument(
        "--checkpoint-activations",
        action=argparse.BooleanOptionalAction,
        help="compute the blocks' activations again instead of storing them (no)",
    )
    group.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="torch.compile the network (no)"
    )
    group.add_argument("--workers", type=int, help="processes that load examples (0)")
    group.add_argument(
        "--rank-timeout",
        type=float,
        default=1800.0,
        help="under torchrun: seconds after which a rank that does not answer ends all (1800)",
    )


def add_records(group: Any) -> None:
    """Adds the flags of RECORDS, and --log-every."""
    group.add_argument(
        "--save-every", type=int, default=500, help="steps between checkpoints (500)"
    )
    group.add_argument(
        "--keep", type=int, default=3, help="checkpoints that are kept, and the best one (3)"
    )
    group.add_argument("--log-every", type=int, help="steps between log entries (20)")
    group.add_argument(
        "--sample-every", type=int, default=0, help="steps between sheets of samples (0: none)"
    )
    group.add_argument(
        "--eval-every",
        type=int,
        default=0,
        help="steps between bounds on held-out data, which choose the best checkpoint (0: none)",
    )
    group.add_argument(
        "--eval-images", type=int, default=256, help="held-out examples of an evaluation (256)"
    )
    group.add_argument(
        "--log",
        type=_names,
        default=(),
        help="tensorboard, wandb, or both with a comma; log.jsonl is always written",
    )


def resources(args: argparse.Namespace, saved: dict[str, Any] | None) -> dict[str, Any]:
    """Returns RESOURCES by the flags, else those of the resumed run's checkpoint."""
    before = {k: v for k, v in (saved or {}).get("machine", {}).items() if k in RESOURCES}
    given = {k: getattr(args, k) for k in RESOURCES if getattr(args, k) is not None}
    return RESOURCES | before | given


def records(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `Trainer.run`. Raises UsageError for numbers below 1."""
    for name in ("save_every", "log_every", "keep", "eval_images"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"expected --{name.replace('_', '-')} >= 1, got {value}.")
    return {name: getattr(args, name) for name in RECORDS}


def _numbers(text: str) -> list[float]:
    value = parse_value(text)
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(v, int | float) for v in numbers):
        raise argparse.ArgumentTypeError(f"expected numbers such as 0.05,0.1, got {text!r}")
    return [float(v) for v in numbers]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)
