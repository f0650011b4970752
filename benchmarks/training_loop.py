"""Compares a training step of fastdiff with a plain PyTorch loop that has the same network.

    python -m benchmarks.training_loop --out benchmarks/results/training-loop-….json
    python -m benchmarks.training_loop --network unet-cifar --batches 8

The network is the shipped U-Net with the bundled images, or unet-cifar (Ho et al. 2020) with random
pictures of 3x32x32, all in memory. All arms take the same step: noise, forward, mean squared error
of v, backward, clipping, AdamW, an average of the weights. The plain loop adds noise by diffusers'
DDPMScheduler and has the best of its settings: fused AdamW, contiguous weights or channels last,
foreach operations for the average, in float32 or in bfloat16. Arms take turns in one process; a
ratio is plain time over fastdiff's.
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

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from benchmarks import harness
from fastdiff import Trainer
from fastdiff import data as datasets
from fastdiff.data import load_fashion_mnist
from fastdiff.jobs import machine
from fastdiff.pretrained import load_system
from fastdiff.theory.systems.presets import make

LR, BETAS, DECAY = 1e-3, (0.9, 0.99), 0.999


def made(network: str) -> tuple[Any, Any]:
    """Returns a new (system, data) of the network."""
    if network == "fashion-mnist":
        return load_system("fashion-mnist"), load_fashion_mnist()
    rng = np.random.Generator(np.random.Philox(0))
    pictures = rng.integers(0, 256, (512, 32, 32, 3), dtype=np.uint8)
    data = datasets.wrap(TensorDataset(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1))
    torch.manual_seed(0)
    return make("unet", data, network=network), data


def ours(network: str, batch: int, **settings: Any) -> Callable[[], Any]:
    """Returns the step of a trainer."""
    system, data = made(network)
    trainer = Trainer(system, data, steps=10**6, batch_size=batch, lr=LR, warmup=0, **settings)
    return trainer.train_step


def plain(
    network: str, batch: int, *, half: bool = False, average: bool = True, last: bool | None = None
) -> Callable[[], Any]:
    """Returns a step of the plain loop. average: whether it keeps averaged weights; last: whether
    the weights are channels last, None to leave them.
    """
    from diffusers import DDPMScheduler

    system, data = made(network)
    net = system.network.train()
    if last is not None:
        net = net.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    averaged = [p.detach().clone() for p in net.parameters()]
    parameters = list(net.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=BETAS, weight_decay=0.0, fused=True)
    noising = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")

    def step() -> float:
        index = torch.randint(0, data.examples, (batch,))
        x0, labels = data.batch(index)
        if last:
            x0 = x0.to(memory_format=torch.channels_last)
        noise = torch.randn_like(x0)
        t = torch.randint(0, 1000, (batch,))
        x_t = noising.add_noise(x0, noise, t)
        target = noising.get_velocity(x0, noise, t)
        condition = ()
        if labels is not None:
            condition = (torch.where(torch.rand(batch) < 0.1, net.null_label, labels),)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = F.mse_loss(net(x_t, t, *condition).float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if average:
            torch._foreach_lerp_(averaged, [p.detach() for p in parameters], 1 - DECAY)
        return float(loss.detach())

    return step


def arms(network: str, batch: int, *, half: bool) -> dict[str, Callable[[], Any]]:
    """Returns the steps by name."""
    found = {
        "fastdiff": ours(network, batch),
        "fastdiff, torch's convolutions": ours(network, batch, accelerate=False),
        "plain": plain(network, batch),
        "plain, channels last": plain(network, batch, last=True),
        "plain, no average": plain(network, batch, average=False),
    }
    if half:
        found["fastdiff, bfloat16"] = ours(network, batch, precision="bf16")
        found["fastdiff, bfloat16, torch's convolutions"] = ours(
            network, batch, precision="bf16", accelerate=False
        )
        found["plain, bfloat16"] = plain(network, batch, half=True)
        found["plain, bfloat16, channels last"] = plain(network, batch, half=True, last=True)
    return found


def measure(
    network: str, batch: int, threads: int, seconds: float, *, half: bool
) -> dict[str, Any]:
    """Returns the seconds of each arm, and the ratios of plain arms to fastdiff."""
    torch.set_num_threads(threads)
    # the processor time of a single thread, which other processes do not change
    clock = time.thread_time if threads == 1 else time.perf_counter
    timed = arms(network, batch, half=half)
    for step in timed.values():
        step()
    times = harness.interleave(timed, seconds=seconds, clock=clock)
    best = {
        who: min((n for n in times if n.startswith(who)), key=lambda n: harness.spread(times[n])[1])
        for who in ("fastdiff", "plain")
    }
    others = [name for name in times if name != best["fastdiff"]]
    fastest = times[best["fastdiff"]]
    return {
        "seconds": {n: round(harness.spread(v)[1], 4) for n, v in times.items()},
        "least": {n: round(min(v), 4) for n, v in times.items()},
        "best": best,
        "over_best_of_fastdiff": {n: harness.ratio(fastest, times[n]) for n in others},
        "float32_over_fastdiff": {
            n: harness.ratio(times["fastdiff"], times[n]) for n in times if "bfloat16" not in n
        },
    }


def parts(network: str, batch: int) -> dict[str, float]:
    """Returns the share of a step's processor time by kind of operation."""
    from torch.profiler import ProfilerActivity, profile

    step = ours(network, batch)
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
    parser.add_argument(
        "--network", default="fashion-mnist", choices=["fashion-mnist", "unet-cifar"]
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=60.0, help="of all arms together")
    parser.add_argument("--half", action="store_true", help="also time bfloat16")
    parser.add_argument("--out", help="JSON file")
    args = parser.parse_args()
    found: dict[str, Any] = {
        "machine": machine.describe(torch.device("cpu")),
        "python": platform.python_version(),
        "network": args.network,
    }
    for threads in args.threads:
        for batch in args.batches:
            name = f"batch {batch}, threads {threads}"
            row = found[name] = measure(args.network, batch, threads, args.seconds, half=args.half)
            print(name, json.dumps(row, indent=1), flush=True)
    torch.set_num_threads(args.threads[0])
    found["shares of a step"] = parts(args.network, args.batches[0])
    print(json.dumps(found["shares of a step"], indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
