"""`fastdiff data`: prepares data for training; `latents` encodes pictures with an autoencoder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backend.hardware import named_device
from ..grad_mode import restored
from ..outside import shown
from .data_flags import add_data_flags, load_data
from .exit_status import usage_errors
from .options import add_quiet, threads
from .output import say

EPILOG = """examples:
  fastdiff data latents --vae models/sd-vae --data pets/ --size 256 --out pets.npy
  fastdiff train --data pets.npy --test-share 0.1 --out runs/pets
  fastdiff sample --model runs/pets --decode models/sd-vae --out samples --num 64

OUT.npy holds mean and deviation of every picture's latent, OUT.json labels, names and scaling.
Training draws a latent anew each epoch.
"""


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "data", help="prepare data: latents of an autoencoder", description="Prepare data."
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="latents")
    latents = kinds.add_parser(
        "latents",
        help="encode pictures with an autoencoder of diffusers",
        description="Encode all pictures of a data set with an autoencoder of diffusers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    latents.add_argument("--vae", required=True, help="folder of the autoencoder, safetensors")
    latents.add_argument(
        "--out", required=True, metavar="OUT.npy", help="OUT.json is written with it"
    )
    latents.add_argument(
        "--split", choices=("train", "test", "all"), help="(all; of a named data set train)"
    )
    latents.add_argument("--batch-size", type=int, default=16, help="pictures at a time (16)")
    latents.add_argument("--threads", type=int, help="CPU threads (torch's default)")
    add_quiet(latents)
    latents.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    add_data_flags(latents)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with threads(args.threads):
        return _latents(args)


def _latents(args: argparse.Namespace) -> int:
    from tqdm.auto import tqdm

    from ..data import NAMES
    from ..data.latents import KEYS, check_target, write
    from ..jobs.models import load_decoder
    from ..user_code import is_name

    with usage_errors():
        if args.batch_size < 1:
            raise ValueError(f"expected --batch-size >= 1, got {args.batch_size}.")
        check_target(Path(args.out))
        device = named_device(args.device, "fastdiff data latents")
        args.data = args.data or "fashion-mnist"
        named = args.data in NAMES or is_name(args.data)
        data = load_data(args, args.split or ("train" if named else "all"))
        if data.levels is None:
            raise ValueError(f"expected pictures to encode, got {data.name}.")
        decoder = load_decoder(args.vae, torch.float32)
    vae = decoder.vae.to(device)
    config = {k: _plain(getattr(vae.config, k, None)) for k in KEYS}
    facts = {**config, "vae": {"path": args.vae, **decoder.identity}}
    with tqdm(total=data.examples, unit="img", disable=args.quiet) as bar:
        shape = write(
            data,
            lambda x0: encode(vae, x0.to(device)),
            Path(args.out),
            facts,
            batch_size=args.batch_size,
            progress=bar.update,
        )
    say(
        f"{shown(args.out)}: {data.examples:,} latents of shape {list(shape)} of {data.name}; train"
        f" on them with: fastdiff train --data {shown(args.out)} --out RUN"
    )
    return 0


@restored
@torch.no_grad()
def encode(vae: Any, x0: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (mean, standard deviation) of the latents of pictures in [-1, 1].

    Grey pictures become grey colours for an autoencoder of colours. An autoencoder without a
    distribution has the deviation 0.

    Raises ValueError for pictures of another number of channels.
    """
    wanted = getattr(vae.config, "in_channels", x0.shape[1])
    if x0.shape[1] == 1 and wanted == 3:
        x0 = x0.expand(-1, 3, *x0.shape[2:])
    if x0.shape[1] != wanted:
        raise ValueError(
            f"expected pictures of {wanted} channels for the autoencoder, got {x0.shape[1]}. Pass"
            f" --channels {wanted}."
        )
    found = vae.encode(x0.to(vae.dtype))
    if hasattr(found, "latent_dist"):
        return found.latent_dist.mean, found.latent_dist.std
    return found.latents, torch.zeros_like(found.latents)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
