"""A folder of a diffusers pipeline: its network in fastdiff's loop, its scheduler's plan, its own
text encoders.

Nothing is downloaded and no code in the folder is run; pickled weights are refused. diffusers is
imported when such a folder is opened. The safety checker is neither loaded nor run.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...pretrained.files import read_json
from ...sampler import Sampler
from . import digest, prompts
from .conditioning import Arguments, Classes, Conditioning
from .decoder import Decoder, unreadable
from .model import Model, Samplers, beside_a_plan, sizes
from .weights import variant_of, weights

INDEX = "model_index.json"
_WHERE = "fastdiff.jobs"
_UNUSED = (
    "safety_checker",
    "feature_extractor",
    "image_encoder",
)  # of text pipelines; pictures go out as they are
_CONFIGS = (".json", ".txt", ".model", ".jinja")


def from_pipeline(
    folder: str,
    *,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: Any = None,
) -> tuple[Model, Decoder | None]:
    """(the model of a pipeline's folder, the decoder of its latents).

    shape: of one sample's state, default the network's own size. dtype: of everything in the
        pipeline.

    Raises FileNotFoundError, ValueError and ImportError in one sentence.
    """
    path = Path(folder)
    index = read_json(path / INDEX)
    kind = index.get("_class_name")
    if not isinstance(kind, str) or kind not in PIPELINES:
        raise ValueError(
            f"{_WHERE}: expected a pipeline among {', '.join(sorted(PIPELINES))} in {folder}, got"
            f" {kind!r}. Write a factory that returns a fastdiff.jobs.Model for others."
        )
    parts = [
        name
        for name, source in index.items()
        if name not in _UNUSED
        and isinstance(source, list)
        and source[0] is not None
        and (path / name).is_dir()
    ]
    core = next((name for name in ("unet", "transformer") if name in parts), None)
    if core is None:
        raise ValueError(
            f"{_WHERE}: expected a unet or transformer in {folder}, got the parts {sorted(parts)}."
        )
    lacking = [name for name in ENCODERS.get(kind, ()) if name not in parts]
    if lacking:
        raise ValueError(
            f"{_WHERE}: expected the part {lacking[0]!r} of a {kind} in {folder}, got none."
        )
    variant = variant_of(path / core)
    heavy = [name for name in parts if name in (core, "vae") or name.startswith("text_encoder")]
    files = [file for name in heavy for file in weights(path / name, variant)]
    pipe = _load(path, index, variant, dtype)
    if device is not None:
        pipe.to(device)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    network = getattr(pipe, core)
    facts = {
        "kind": "diffusers",
        "name": folder,
        "pipeline": kind,
        "dtype": str(dtype).removeprefix("torch."),
        "weights_sha256": digest.of_files(path, files),
        "config_sha256": digest.of_files(path, _configs(path, parts)),
        "versions": {
            name: _version(name)
            for name in ("diffusers", *(["transformers"] if "tokenizer" in parts else []))
        },
    }
    size = _size(folder, network, shape)
    from ...integrations.networks import from_diffusers

    adapter = from_diffusers(network)
    model = Model(
        adapter,
        size,
        conditions=PIPELINES[kind](pipe, index, size),
        facts=facts,
        sampler=_samplers(pipe, network, dtype),
    )
    vae = getattr(pipe, "vae", None)
    return model, None if vae is None else Decoder(vae, {"name": "pipe"})


def _load(path: Path, index: dict[str, Any], variant: str | None, dtype: torch.dtype) -> Any:
    # parts that are written down as none must be named again
    absent: dict[str, Any] = {
        k: None for k, v in index.items() if k in _UNUSED or v == [None, None]
    }
    absent |= {"requires_safety_checker": False} if "requires_safety_checker" in index else {}
    absent |= (
        {} if importlib.util.find_spec("accelerate") else {"low_cpu_mem_usage": False}
    )  # else it warns
    try:
        from diffusers import DiffusionPipeline
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{_WHERE}: expected diffusers for the folder {path}, got none. Install {error.name}."
        ) from None
    try:
        return DiffusionPipeline.from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=True,
            variant=variant,
            torch_dtype=dtype,
            **absent,
        )
    except Exception as error:
        raise unreadable(f"a diffusers pipeline in {path}", error) from error


def _size(folder: str, network: Any, shape: Sequence[int] | None) -> tuple[int, ...]:
    """One sample's state: the network's channels at its own size, or at the size asked for."""
    config = network.config
    channels, gives = (
        config.in_channels,
        getattr(config, "out_channels", None) or config.in_channels,
    )
    if (
        gives not in (channels, 2 * channels)
        or getattr(config, "time_cond_proj_dim", None) is not None
    ):
        extra = (
            "a guidance embedding"
            if gives in (channels, 2 * channels)
            else f"{channels} channels in and {gives} out"
        )
        raise ValueError(
            f"{_WHERE}: expected a network of noised samples alone in {folder}, got one with"
            f" {extra}."
        )
    if shape is None:
        side = config.sample_size
        if side is None:
            raise ValueError(
                f"{_WHERE}: expected sample_size in the network's config of {folder}, got none."
                " Pass --shape."
            )
        return (channels, *((side, side) if isinstance(side, int) else side))
    size = sizes(shape)
    if len(size) != 3 or size[0] != channels:
        raise ValueError(
            f"{_WHERE}: expected a shape ({channels}, height, width) for {folder}, got"
            f" {list(size)}."
        )
    return size


def _samplers(pipe: Any, network: Any, dtype: torch.dtype) -> Samplers:
    """Samplers on the scheduler's plan, on that of a solver of fastdiff's where one is named, or on
    a ready one.
    """

    def make(plan: Any = None, **settings: Any) -> Sampler:
        from ...integrations.networks import from_diffusers

        if dtype != torch.float32:
            settings.setdefault(
                "network_dtype", dtype
            )  # some networks keep parts of theirs in float32
        if plan is not None:
            # the variance half of an output is read by the plans that take noise from it
            reads = bool((plan.column("noise_mode") != 0).any())
            model = from_diffusers(network, **({"channels": None} if reads else {}))
            return Sampler(model, plan=plan, **beside_a_plan(settings))
        if settings.get("solver") is None:
            settings.pop("solver", None)
            return Sampler.from_diffusers(pipe, **settings)
        from ...integrations.diffusers.sampler_settings import sampler_settings

        model = from_diffusers(network)
        schedule, own = sampler_settings(pipe.scheduler, model, solver=settings["solver"])
        # what the solver reads of the output is known when its plan is
        return make(Sampler(model, schedule, **{**own, **settings}).plan, **settings)

    return make


# -- what each pipeline is told


def _pictures(pipe: Any, index: dict[str, Any], size: tuple[int, ...]) -> Conditioning:
    """UNet2DModel: nothing, or classes without a null label."""
    count = getattr(pipe.unet.config, "num_class_embeds", None)
    return Classes(count, argument="class_labels") if count else Arguments(lambda x, t: x)


def _dit(pipe: Any, index: dict[str, Any], size: tuple[int, ...]) -> Conditioning:
    """Classes; the embedding after the last one stands for none (Peebles & Xie 2023, section
    3.2).
    """
    count = pipe.transformer.config.num_embeds_ada_norm
    known = index.get("id2label") or {}
    names = (
        tuple(known[str(i)] for i in range(count))
        if all(str(i) in known for i in range(count))
        else ()
    )
    return Classes(count, names, null_label=count, argument="class_labels")


def _stable(pipe: Any, index: dict[str, Any], size: tuple[int, ...]) -> Conditioning:
    return prompts.Prompts(pipe, prompts.stable_diffusion)


def _xl(pipe: Any, index: dict[str, Any], size: tuple[int, ...]) -> Conditioning:
    """Pooled texts, and the pictures' own size as original and target, not cropped (Podell et al.
    2024, section 2.2).
    """
    config, encoder = pipe.unet.config, pipe.text_encoder_2
    ids = pipe.unet.add_embedding.linear_1.in_features - encoder.config.projection_dim
    if ids != 6 * config.addition_time_embed_dim:
        raise ValueError(
            f"{_WHERE}: expected a base model of SDXL with six size conditions, got a refiner or"
            " the like."
        )
    height, width = (side * pipe.vae_scale_factor for side in size[1:])
    time_ids = torch.tensor([[height, width, 0, 0, height, width]])
    zeros = bool(pipe.config.force_zeros_for_empty_prompt)
    return prompts.Prompts(
        pipe, prompts.pooled("text_embeds"), zeros=zeros, shared={"time_ids": time_ids}
    )


def _three(pipe: Any, index: dict[str, Any], size: tuple[int, ...]) -> Conditioning:
    return prompts.Prompts(pipe, prompts.pooled("pooled_projections", "prompt_2", "prompt_3"))


PIPELINES: dict[str, Callable[[Any, dict[str, Any], tuple[int, ...]], Conditioning]] = {
    "ConsistencyModelPipeline": _pictures,
    "DDIMPipeline": _pictures,
    "DDPMPipeline": _pictures,
    "DiTPipeline": _dit,
    "StableDiffusion3Pipeline": _three,
    "StableDiffusionPipeline": _stable,
    "StableDiffusionXLPipeline": _xl,
}
"""Pipelines of diffusers by what their networks are told."""
ENCODERS = {
    "StableDiffusion3Pipeline": ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    "StableDiffusionPipeline": ("text_encoder", "tokenizer"),
    "StableDiffusionXLPipeline": ("text_encoder_2", "tokenizer_2"),
}
"""The parts that prompts need."""


def _configs(path: Path, parts: Sequence[str]) -> list[Path]:
    """The files beside the weights: configurations and vocabularies."""
    inside = [
        file
        for name in parts
        for file in sorted((path / name).iterdir())
        if file.suffix in _CONFIGS
    ]
    return [path / INDEX, *inside]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
