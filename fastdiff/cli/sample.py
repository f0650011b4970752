"""`fastdiff sample`: draws images from a model folder into samples.npz, grid.png and sample.json."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from .. import __version__, images
from ..backend import backend_for
from ..checkpoint import write_atomically, write_json
from ..cpu import network_dtype
from ..pretrained import locate, read_config, shipped
from ..sampler import Sampler


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "sample",
        help="draw images from a model folder",
        description="Draw images from a model folder. Sample i of a seed is the same picture in any run that holds it.",
    )
    parser.add_argument("--weights", default="fashion-mnist", help=f"folder or shipped model: {', '.join(shipped())}")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--num", type=int, default=256, help="how many images (256)")
    parser.add_argument("--first-id", type=int, default=0, help="sample id of the first image (0)")
    parser.add_argument("--seed", type=int, default=0, help="names the run (0)")
    parser.add_argument("--classes", help="comma-separated class indices or names, repeated in turn (all)")
    parser.add_argument("--solver", help="see `fastdiff solvers`; the model's own by default")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--eta", type=float, default=0.0, help="DDIM's noise, 0 … 1")
    parser.add_argument("--guidance", type=float, help="gamma of u + gamma (c - u); the model's own by default")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, help="CPU threads (torch's default)")
    parser.add_argument("--dtype", choices=("auto", "fp32", "bf16"), default="auto", help="the network's (auto)")
    parser.add_argument("--overwrite", action="store_true", help="replace the result of another specification")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.num < 1 or args.batch_size < 1:
        raise ValueError(f"expected --num and --batch-size >= 1, got {args.num} and {args.batch_size}.")
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"expected --threads >= 1, got {args.threads}.")
        torch.set_num_threads(args.threads)
    config = read_config(args.weights)
    overrides: dict[str, Any] = {"steps": args.steps, "eta": args.eta}
    if args.solver is not None:
        overrides["solver"] = args.solver
    if args.guidance is not None:
        overrides["guidance_scale"] = args.guidance
    sampler = Sampler.from_pretrained(args.weights, **overrides)
    dtype = network_dtype(args.dtype)
    network = cast(nn.Module, sampler.model).to(dtype)

    shape = (config["model"]["config"]["channels"], *(config["model"]["config"]["size"],) * 2)
    names = config.get("data", {}).get("classes", [])
    chosen = _classes(args.classes, names)
    ids = np.arange(args.first_id, args.first_id + args.num)
    labels = np.array([chosen[i % len(chosen)] for i in ids], dtype=np.int64) if chosen else None
    spec = {
        "weights": args.weights,
        "weights_sha256": _sha256(locate(args.weights) / "model.safetensors"),
        "num": args.num,
        "first_id": args.first_id,
        "seed": args.seed,
        "classes": chosen,
        **sampler.plan.info,
        "guidance_scale": sampler.guidance_scale,
        "plan": sampler.plan.hash,
        "network_dtype": str(dtype).removeprefix("torch."),
        "batch_size": args.batch_size,
    }
    out = Path(args.out)
    _refuse_other(out, spec, args.overwrite)

    begin = time.perf_counter()
    batches = []
    device = next(network.parameters()).device
    with tqdm(total=args.num, unit="img", bar_format="{desc}{percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<"
              "{remaining}, {rate_fmt}]", desc="sampling ") as bar:  # fmt: skip
        for batch in sampler.stream(
            args.num, shape, batch_size=args.batch_size, first_id=args.first_id, seed=args.seed,
            cond=_condition(labels), uncond=_condition(labels, null=getattr(network, "null_label", None)),
            callback=lambda i, t, x, x0: bar.update(min(len(x) / len(sampler.plan), args.num - bar.n)) and None,
        ):  # fmt: skip
            batches.append(images.to_uint8(batch).cpu())
        bar.update(args.num - bar.n)
    seconds = time.perf_counter() - begin
    pictures = torch.cat(batches).permute(0, 2, 3, 1).contiguous().numpy()

    report = {
        "spec": spec,
        "fastdiff": __version__,
        "torch": torch.__version__,
        "backend": backend_for("reverse_step", device),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 3),
        "images_per_second": round(args.num / seconds, 2),
    }
    out.mkdir(parents=True, exist_ok=True)
    extra = {} if labels is None else {"labels": labels}
    write_atomically(out / "samples.npz", lambda p: _savez(p, images=pictures, ids=ids, **extra))
    grid = images.grid(pictures, labels, names)
    write_atomically(out / "grid.png", lambda p: grid.save(p, format="PNG"))
    write_json(out / "sample.json", report)
    print(f"{args.num} images in {seconds:.1f} s ({args.num / seconds:.1f} images/s, backend {report['backend']})")
    for name, what in (("samples.npz", "uint8 images, labels and ids"), ("grid.png", "labelled grid"),
                       ("sample.json", "specification, plan hash, backend and speed")):  # fmt: skip
        print(f"  {out / name}: {what}")
    return 0


def _classes(text: str | None, names: list[str]) -> list[int]:
    """Class indices from `3,7` or `Coat,Bag`; all classes without a text."""
    if text is None:
        return list(range(len(names)))
    chosen = []
    for part in text.split(","):
        part = part.strip()
        index = names.index(part) if part in names else int(part) if part.isdecimal() else -1
        if not 0 <= index < len(names):
            raise ValueError(f"expected --classes among 0-{len(names) - 1} or {', '.join(names)}, got {part!r}.")
        chosen.append(index)
    return chosen


def _condition(labels: np.ndarray | None, null: int | None = None) -> dict[str, torch.Tensor] | None:
    """The network's label argument: the labels, or the null label of classifier-free guidance."""
    if labels is None:
        return None
    y = torch.from_numpy(labels)
    return {"y": y if null is None else torch.full_like(y, null)}


def _refuse_other(out: Path, spec: dict[str, Any], overwrite: bool) -> None:
    """A folder that holds the result of another specification is left alone."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"expected --out to name a folder, got the file {out}.")
    report = out / "sample.json"
    if overwrite or not report.exists():
        return
    try:
        old = json.loads(report.read_text(encoding="utf-8"))["spec"]
    except (ValueError, KeyError, OSError):
        raise ValueError(f"expected a readable {report}; pass another --out, or --overwrite.") from None
    changed = [f"{k}: {old.get(k)!r} there, {spec.get(k)!r} now" for k in spec if old.get(k) != spec.get(k)]
    if changed:
        raise ValueError(
            f"{out} holds the result of another specification ({'; '.join(changed)}); pass another --out, or --overwrite."
        )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _savez(path: Path, **arrays: Any) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)
