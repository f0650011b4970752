"""Compares a training step of fastdiff with a plain PyTorch loop that has the same network.

    python -m benchmarks.training_loop --out benchmarks/results/training-loop-….json

The network is the shipped U-Net, the data are the bundled images in memory, and both arms take the
same step: noise, forward, mean squared error of v, backward, clipping, AdamW, an average of the
weights. The plain loop adds noise by diffusers' DDPMScheduler and has the best of its settings:
fused AdamW, channels last (the network's own), foreach operations for the average, in float32 or in
bfloat16. Arms take turns in one process; a ratio is plain time over fastdiff's.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks import harness
from fastdiff import Trainer
from fastdiff.data import load_fashion_mnist
from fastdiff.jobs import machine
from fastdiff.pretrained import load_system

LR, BETAS, DECAY = 1e-3, (0.9, 0.99), 0.999


def ours(batch: int, **settings: Any) -> Callable[[], Any]:
    """Returns the step of a trainer on the shipped system."""
    system = load_system("fashion-mnist")
    data = load_fashion_mnist()
    trainer = Trainer(system, data, steps=10**6, batch_size=batch, lr=LR, warmup=0, **settings)
    return trainer.train_step


def plain(batch: int, *, half: bool = False, average: bool = True) -> Callable[[], Any]:
    """Returns a step of the plain loop. average: whether it keeps averaged weights."""
    from diffusers import DDPMScheduler

    system: Any = load_system("fashion-mnist")
    network, data = system.network.train(), load_fashion_mnist()
    averaged = [p.detach().clone() for p in network.parameters()]
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=BETAS, weight_decay=0.0, fused=True)
    noising = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")

    def step() -> float:
        index = torch.randint(0, data.examples, (batch,))
        x0, labels = data.batch(index)
        noise = torch.randn_like(x0)
        t = torch.randint(0, 1000, (batch,))
        x_t = noising.add_noise(x0, noise, t)
        target = noising.get_velocity(x0, noise, t)
        y = torch.where(torch.rand(batch) < 0.1, network.null_label, labels)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = F.mse_loss(network(x_t, t, y).float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if average:
            torch._foreach_lerp_(averaged, [p.detach() for p in parameters], 1 - DECAY)
        return float(loss)

    return step


def arms(batch: int, *, half: bool) -> dict[str, Callable[[], Any]]:
    """Returns the steps by name."""
    found = {
        "fastdiff": ours(batch),
        "fastdiff, torch's convolutions": ours(batch, accelerate=False),
        "plain": plain(batch),
        "plain, no average": plain(batch, average=False),
    }
    return found | ({"plain, bfloat16": plain(batch, half=True)} if half else {})


def measure(batch: int, threads: int, seconds: float, *, half: bool) -> dict[str, Any]:
    """Returns the seconds of each arm, and the ratios of plain arms to fastdiff."""
    torch.set_num_threads(threads)
    # the processor time of a single thread, which other processes do not change
    clock = time.thread_time if threads == 1 else time.perf_counter
    timed = arms(batch, half=half)
    for step in timed.values():
        step()
    times = harness.interleave(timed, seconds=seconds, clock=clock)
    others = [name for name in times if name != "fastdiff"]
    best = min((n for n in others if n.startswith("plain")), key=lambda n: min(times[n]))
    return {
        "seconds": {n: round(harness.spread(v)[1], 4) for n, v in times.items()},
        "least": {n: round(min(v), 4) for n, v in times.items()},
        "over_fastdiff": {n: harness.ratio(times["fastdiff"], times[n]) for n in others},
        "of_the_least": {n: round(min(times[n]) / min(times["fastdiff"]), 3) for n in others},
        "best_plain": best,
    }


def parts(batch: int) -> dict[str, float]:
    """Returns the share of a step's processor time by kind of operation."""
    from torch.profiler import ProfilerActivity, profile

    step = ours(batch)
    step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    events = found.key_averages()
    total = sum(e.self_cpu_time_total for e in events)
    largest = sorted(events, key=lambda e: -e.self_cpu_time_total)[:8]
    return {e.key: round(e.self_cpu_time_total / total, 3) for e in copy.copy(largest)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=60.0, help="of all arms together")
    parser.add_argument("--half", action="store_true", help="also time the plain loop in bfloat16")
    parser.add_argument("--out", help="JSON file")
    args = parser.parse_args()
    found: dict[str, Any] = {
        "machine": machine.describe(torch.device("cpu")),
        "python": platform.python_version(),
    }
    for threads in args.threads:
        for batch in args.batches:
            name = f"batch {batch}, threads {threads}"
            row = found[name] = measure(batch, threads, args.seconds, half=args.half)
            print(name, json.dumps(row, indent=1), flush=True)
    torch.set_num_threads(args.threads[0])
    found["shares of a step"] = parts(args.batches[0])
    print(json.dumps(found["shares of a step"], indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
