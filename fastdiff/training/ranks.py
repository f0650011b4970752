"""Training on several processes: each has a share of every batch, and all take the same step.

    gradient = Σ_r Σ_{b in share r} ∇loss_b / B

Rank r of W has the positions ⌊rB/W⌋ … ⌊(r+1)B/W⌋ - 1 of the global batch. The gradients are summed
in buckets, in the order of the parameters, after the backward pass. torch's
DistributedDataParallel would overlap the two, but its buckets follow the first backward pass, which
a resumed run has at another step; it needs an extra search for parameters that a loss does not
reach; and it averages over ranks, which is the mean over examples only for equal shares.

A run is started by torchrun; `joined` reads what torchrun says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET = 1 << 25  # elements of a sum: 128 MiB of float32
SECONDS = 1800.0  # after which a rank that does not answer is given up


def rank() -> int:
    """Returns this process's rank, 0 without a group."""
    return dist.get_rank() if _grouped() else 0


def world() -> int:
    """Returns the number of ranks, 1 without a group."""
    return dist.get_world_size() if _grouped() else 1


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def joined(device: str = "cpu", seconds: float = SECONDS) -> Iterator[str]:
    """Joins the processes of torchrun for the block; yields this rank's device.

    Without torchrun, or in a group already, nothing is joined. Ranks on GPUs have one each, by
    torchrun's LOCAL_RANK, and talk by NCCL; on the CPU they talk by gloo.

    Args:
        device: `cpu`, `cuda` or another of torch's.
        seconds: how long a rank waits for another's answer.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if size < 2 or _grouped():
        yield device
        return
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu and torch.device(device).index is None:
        device = f"cuda:{local}"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(seconds=seconds))
    yield device
    dist.destroy_process_group()  # not after an error: it would wait for ranks that are gone


def share(size: int) -> tuple[int, int]:
    """Returns (start, end), the positions of this rank in a batch of `size`."""
    return size * rank() // world(), size * (rank() + 1) // world()


@contextmanager
def answered(step: int) -> Iterator[None]:
    """Turns a failure of communication within the block into one sentence, a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise RuntimeError(
            f"fastdiff.Trainer: expected all {world()} ranks in step {step}, got {reason!r} on rank"
            f" {rank()}. Another rank has died or hangs; start all again with --resume."
        ) from None


def add(tensors: Sequence[Tensor]) -> None:
    """Replaces the tensors by their sums over the ranks, in place."""
    bucket: list[Tensor] = []
    for i, tensor in enumerate(tensors):
        bucket.append(tensor)
        following = tensors[i + 1] if i + 1 < len(tensors) else None
        if (
            following is None
            or following.dtype != tensor.dtype
            or sum(t.numel() for t in bucket) + following.numel() > BUCKET
        ):
            _add_bucket(bucket)
            bucket = []


def _add_bucket(tensors: Sequence[Tensor]) -> None:
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    for tensor, summed in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(summed.view(tensor.shape))


def sum_gradients(parameters: Sequence[Tensor], numbers: Sequence[float]) -> list[float]:
    """Sums the gradients and some numbers over the ranks; returns the sums of the numbers.

    A parameter that no rank has a gradient of keeps None, as in one process.
    """
    device = parameters[0].device
    present = [float(p.grad is not None) for p in parameters]
    message = torch.tensor([*numbers, *present], dtype=torch.float64, device=device)
    dist.all_reduce(message)
    values = message.tolist()
    sums, counts = values[: len(numbers)], values[len(numbers) :]
    reached = [p for p, count in zip(parameters, counts, strict=True) if count]
    for p in reached:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    add([p.grad for p in reached if p.grad is not None])
    return sums


def gather_rows(rows: Tensor, start: int, total: int) -> Tensor:
    """Returns rows [total, k] of the whole batch; this rank has those from `start` on."""
    if world() == 1:
        return rows
    whole = rows.new_zeros(total, *rows.shape[1:])
    whole[start : start + len(rows)] = rows
    dist.all_reduce(whole)  # a sum with zeros
    return whole


def equalise(tensors: Sequence[Tensor]) -> None:
    """Gives every rank the tensors of rank 0."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def barrier() -> None:
    """Waits for all ranks."""
    if world() > 1:
        dist.barrier()
