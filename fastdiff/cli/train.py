"""`fastdiff train`: trains a system and writes a model folder; --resume continues a stopped run."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import data as datasets
from ..backend.hardware import named_device
from ..models.build import check_trust
from ..outside import shown
from ..pretrained.folders import names_code
from ..theory.registry import SYSTEMS
from ..user_code import is_name
from .after_training import closing
from .data_flags import add_data_flags, load_data, may_be_same, stored_options
from .exit_status import AGAIN, INTERRUPTED, usage_errors
from .options import add_options, add_quiet, parse_options, parse_value, threads
from .output import say
from .run_flags import (
    SETTINGS,
    add_records,
    add_resources,
    add_settings,
    records,
    resources,
)
from .teacher import teach

if TYPE_CHECKING:
    from ..training import Trainer

# the settings of a run, saved in its folder: --resume needs only --out
RUN: dict[str, Any] = {
    "model": "unet",
    "data": "fashion-mnist",
    "steps": 1000,
    **SETTINGS,
    "log_every": 20,  # of the loss curve, which is part of the run
}
# other defaults where the data are points of the plane
POINTS = {"steps": 1500, "batch_size": 256, "lr": 2e-3}
# flag: the names of the system's option that it sets, of which a system has one or none
SHORTHANDS = {
    "objective": ("prediction_type", "objective"),
    "schedule": ("schedule",),
    "timesteps": ("timesteps",),
    "widths": ("widths",),
    "label_dropout": ("label_dropout",),
    "latent": ("latent",),
    "network": ("network",),
    "levels": ("latents",),
}
EPILOG = """examples:
  fastdiff train --model unet --out runs/unet --steps 3000 --data fashion-mnist-full
  fastdiff train --out runs/pets --data pets/ --size 64 --flip --test-share 0.1
  fastdiff train --model vae --out runs/vae --minutes 8 --option latent=32
  fastdiff train --model vdm --out runs/moons --data moons --plot moons.png
  fastdiff train --model unet --out runs/dit --network dit-s/4 --batch-size 16
  fastdiff train --model unet --out runs/own --network mynets:Net --option width=64
  fastdiff train --model vae --options                lists the options of a system
  fastdiff train --out runs/unet --resume             continues a run that was stopped or killed
"""


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a system: U-Net, VAE, HVAE, VDM, score or autoregressive model,"
        " classifier, super-resolution",
        description="Train a system on named data, a folder of pictures, or other files.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=sorted(SYSTEMS), help="the system (unet)")
    parser.add_argument("--out", help="folder for checkpoints, loss curve and the finished model")
    add_data_flags(parser, augment=True)
    run_ = parser.add_argument_group("the run")
    add_settings(run_)
    system = parser.add_argument_group(
        "the system", "--option sets any option of a system; the common ones also have flags."
    )
    add_options(system, "an option of the system, see --options")
    system.add_argument(
        "--options", action="store_true", help="list the system's options for --data and exit"
    )
    system.add_argument(
        "--objective",
        help="what the network predicts: epsilon, x0, v, …; for a VAE, what it maximises",
    )
    system.add_argument(
        "--network",
        help="of unet, score, vdm or superres: unet, attention-unet, unet-cifar, dit, dit-s/2 …"
        " dit-xl/8, or package.module:function, your own",
    )
    system.add_argument(
        "--init",
        metavar="FOLDER",
        help="begin with the network of this model folder, of fastdiff or of diffusers (unet)",
    )
    system.add_argument("--schedule", help="noise schedule: cosine, linear, …")
    system.add_argument("--timesteps", help="number of timesteps T of the schedule")
    system.add_argument("--widths", help="channels or features per level, finest first: 32,64,96")
    system.add_argument("--label-dropout", help="fraction of examples trained without their label")
    system.add_argument("--latent", help="size of the latent code")
    system.add_argument(
        "--levels",
        help="latents of each level of a hierarchy, bottom to top: 64,32 for markovian,"
        " [[4,14],[8,7]] (channels, size) for hvae",
    )
    machine = parser.add_argument_group("this process")
    machine.add_argument("--resume", action="store_true", help="continue the run in --out")
    machine.add_argument(
        "--trust",
        action="store_true",
        help="with --resume or --init, run the code that the folder names as its network",
    )
    machine.add_argument(
        "--minutes", type=float, help="stop after this time with a checkpoint and a usable model"
    )
    machine.add_argument("--threads", type=int, help="CPU threads (torch's default)")
    machine.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    add_resources(machine)
    add_records(parser.add_argument_group("what is written on the way"))
    add_quiet(machine)
    machine.add_argument(
        "--plot",
        metavar="FILE.png",
        help="at the end, draw samples; for points also density and score",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..training import ranks

    with usage_errors():
        named_device(args.device, "fastdiff.training")
    with threads(args.threads), ranks.joined(args.device, args.rank_timeout) as device:
        args.device = device
        return _run(args)


def _prepare(args: argparse.Namespace) -> tuple[Trainer, dict[str, Any], dict[str, Any]]:
    """Returns (trainer, the run by the flags, arguments of `Trainer.run`)."""
    from ..theory.systems.presets import make
    from ..training import Settings, Trainer, ranks

    if args.minutes is not None and not args.minutes > 0:
        raise ValueError(f"expected --minutes > 0, got {args.minutes}.")
    recorded = records(args)
    if not args.out:
        raise ValueError("expected --out FOLDER, got none.")
    out = Path(args.out)
    arguments, how = _arguments(args, out)
    ranks.barrier()  # all have seen the folder as it was
    data = load_data(args, "train", run=arguments, augment=True)
    torch.manual_seed(arguments["seed"])  # of the network's initial weights
    if args.resume:  # defaults of options may have changed since the run began
        named = _named(args)
        system = _saved_system(out, named, args.trust).to(args.device)
    else:
        options = dict(arguments["options"])
        if args.init:
            options["network"] = _initial(args)
        system = make(arguments["model"], data, **options).to(args.device)
    if getattr(system, "teacher", None) is not None:
        teach(system, args.device)
    if args.plot:
        from .system_figure import check

        check(system, data, args.plot)
    settings = Settings(**{k: arguments[k] for k in ("steps", *SETTINGS)}, **how)
    recorded |= {"log_every": arguments["log_every"], "progress": not args.quiet}
    # samples do not need it: other data than the named ones may have no test split
    needed = args.eval_every or (args.sample_every and arguments["data"] in datasets.NAMES)
    held_out = load_data(args, "test", run=arguments) if needed else None
    trainer = Trainer(system, data, settings, {"arguments": arguments}, held_out=held_out)
    return trainer, arguments, recorded


def _run(args: argparse.Namespace) -> int:
    from ..training import ranks

    with usage_errors():
        if args.options:
            return _list_options(args)
        trainer, arguments, recorded = _prepare(args)
    out, system, data, settings = Path(args.out), trainer.system, trainer.data, trainer.settings
    if args.resume:
        trainer.resume(out)
    if ranks.rank():
        with _stopping(trainer) as signals:
            trainer.run(out, minutes=args.minutes, **recorded)
        return _status(signals) if trainer.stopping and trainer.step < settings.steps else 0
    parameters = sum(p.numel() for p in system.parameters())
    say(
        f"{shown(arguments['model'])}: {parameters:,} parameters, {data.examples:,} examples"
        f" ({data.name}), {settings.steps} steps",
        flush=True,
    )
    with _stopping(trainer) as signals:
        loss = trainer.run(out, minutes=args.minutes, **recorded)
    measured = f"loss {loss:.4f} {getattr(system, 'loss_unit', 'nats')}"
    if trainer.step < settings.steps:
        say(
            f"stopped at step {trainer.step} of {settings.steps}, {measured}; continue with:"
            f" fastdiff train --out {out} --resume{' --trust' if names_code(system) else ''}"
        )
        if trainer.stopping:
            return _status(signals)
    else:
        say(f"{measured} after {trainer.step} steps; {closing(system, out, arguments['data'])}")
    if args.plot:
        from .system_figure import draw

        draw(trainer.ema, data, args.plot)
        say(f"  {args.plot}")
    return 0


def _status(signals: list[int]) -> int:
    """Returns the exit status of a run that was stopped, here or on another rank."""
    return INTERRUPTED if signals and signals[0] == signal.SIGINT else AGAIN


def _arguments(args: argparse.Namespace, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the run by the flags, and on --resume by its folder, and how to compute it.

    Raises ValueError where a flag contradicts the folder of a resumed run.
    """
    from ..theory.systems.presets import options_of
    from ..training import CHECKPOINT, is_run
    from ..training.folder import EARLIER, read, steps_of

    flags = {k: getattr(args, k) for k in RUN if getattr(args, k) is not None}
    shorthands = {
        k: parse_value(getattr(args, k)) for k in SHORTHANDS if getattr(args, k) is not None
    }
    set_by_flags = [name for flag in shorthands for name in SHORTHANDS[flag]]
    options = parse_options(args.option, also=set_by_flags)
    saved: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    if args.resume:
        if not (out / CHECKPOINT).exists() and not steps_of(out / EARLIER):
            raise ValueError(
                f"expected a run to resume in {out}, got no {CHECKPOINT}. Leave out --resume to"
                " start one."
            )
        metadata = read(out)[1]
        saved = metadata["notes"].get("arguments")
        if saved is None:
            raise ValueError(
                f"expected a run of `fastdiff train` in {out}, got one of fastdiff.Trainer. Resume"
                " it with fastdiff.Trainer."
            )
    elif is_run(out):
        raise ValueError(
            f"{out} holds a training run already; pass --resume to continue it, or another --out."
        )
    points = flags.get("data", RUN["data"]) in datasets.TOYS
    # a run of an earlier version lacks some of RUN
    arguments = RUN | (saved or (POINTS if points else {})) | flags
    if saved is not None and not may_be_same(saved["data"], arguments["data"]):
        raise _another(out, "data", saved["data"], arguments["data"])
    data_options = stored_options(args, None if saved is None else saved.get("data_options", {}))
    if data_options:
        arguments["data_options"] = data_options
    before, named = saved["options"] if saved else {}, _named(args)
    if args.init and (saved or "network" in named):
        raise ValueError(
            f"expected --init for a new run and without --network, got --init {args.init} with"
            f" {'--resume' if saved else '--network'}."
        )
    _check_trust(args, named, before, out)
    known = options_of(
        arguments["model"],
        load_data(args, "train", run=arguments, augment=True),
        _initial(args) if args.init else (before | named).get("network"),
    )
    for flag, value in shorthands.items():
        name = next((n for n in SHORTHANDS[flag] if n in known), None)
        if name is None:
            raise ValueError(
                f"expected no --{flag.replace('_', '-')} for {arguments['model']}, which has no"
                " such option."
            )
        if flag in ("widths", "levels") and not isinstance(value, list):
            value = [value]
        options = {name: value} | options
    arguments["options"] = {**(saved or {"options": {}})["options"], **options}
    for key, value in (saved or {}).items():
        if key != "data" and arguments[key] != value:
            raise _another(out, key, value, arguments[key])
    return arguments, resources(args, metadata)


def _saved_system(out: Path, named: dict[str, Any], trust: bool) -> Any:
    """Returns the system that a run in the folder `out` trains, with new weights.

    named: the options of the command, whose code may run. trust: whether other code may.
    """
    from ..pretrained.folders import with_networks
    from ..theory.registry import find
    from ..training.folder import read

    system = read(out)[1]["identity"]["system"]
    config = with_networks(system["config"], trust, shown(out), named.values())
    return find(system["name"])(**config)


def _another(out: Path, key: str, value: Any, got: Any) -> ValueError:
    return ValueError(
        f"expected the {key} {value} of the run in {out}, got {got}. Start another run in another"
        " folder."
    )


def _list_options(args: argparse.Namespace) -> int:
    from ..theory.systems.presets import options_of

    named = {"data": args.data or RUN["data"], "data_options": stored_options(args)}
    data = load_data(args, "train", run=named)
    network = _named(args).get("network")
    for name, value in options_of(args.model or RUN["model"], data, network).items():
        say(f"{name}={value}")
    return 0


def _initial(args: argparse.Namespace) -> Any:
    """Returns the network of --init."""
    from ..pretrained import network_of

    return network_of(args.init, trust=args.trust).train()


def _named(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options that this command names, with --network."""
    network = {} if args.network is None else {"network": parse_value(args.network)}
    return parse_options(args.option, also=network) | network


def _check_trust(
    args: argparse.Namespace, named: dict[str, Any], saved: dict[str, Any], out: Path
) -> None:
    """Refuses to run code that only the folder of a resumed run names, without --trust."""
    for key, value in saved.items():
        if key in ("network", "encoder", "decoder") and named.get(key) != value and not args.trust:
            check_trust({"factory": value} if is_name(value) else {}, False, shown(out))


@contextmanager
def _stopping(trainer: Trainer) -> Iterator[list[int]]:
    """Handles signals within the block; yields the list of those received.

    The first SIGINT or SIGTERM ends the run after its current step, with a checkpoint. A second one
    ends it at once, except under torchrun, which sends a second one while the first is obeyed.
    """
    from ..training import ranks

    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        if received and ranks.world() == 1:
            raise KeyboardInterrupt
        received.append(number)
        trainer.stopping = True

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, stop)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
