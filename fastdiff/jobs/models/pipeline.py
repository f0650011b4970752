"""Opens the folder of a diffusers pipeline as a model.

The network runs in fastdiff's loop with the plan of the pipeline's scheduler, and the pipeline's
own encoders encode the prompts. Nothing is downloaded, no code in the folder is run, and pickled
weights are refused. diffusers is imported when such a folder is opened. The safety checker is
neither loaded nor run.
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
from .decoder import Decoder, loading_error
from .model import Model, Samplers, execution_settings, sizes
from .weights import variant_of, weights

INDEX = "model_index.json"
_WHERE = "fastdiff.jobs"
# parts of text pipelines that are not loaded
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
LIBRARIES = ("diffusers", "transformers")  # whose classes a folder may name
_CONFIGS = (".json", ".txt", ".model", ".jinja")


def from_pipeline(
    folder: str,
    *,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: Any = None,
) -> tuple[Model, Decoder | None]:
    """Returns (the model of a pipeline's folder, the decoder of its latents or None).

    Args:
        folder: of the pipeline.
        shape: of one sample's state, default the network's own size.
        dtype: of everything in the pipeline.
        device: to move the pipeline to; None leaves it on the CPU.

    Raises FileNotFoundError, ValueError and ImportError in one sentence.
    """
    path = Path(folder)
    index = read_json(path / INDEX, finite=False)
    kind = index.get("_class_name")
    if not isinstance(kind, str) or kind not in PIPELINES:
        raise ValueError(
            f"{_WHERE}: expected a pipeline among {', '.join(sorted(PIPELINES))} in {folder}, got"
            f" {kind!r}. Write a factory that returns a fastdiff.jobs.Model for another one."
        )
    parts = [
        name
        for name, source in index.items()
        if name not in _UNUSED
        and isinstance(source, list)
        and len(source) == 2
        and source[0] is not None
        and (path / name).is_dir()
    ]
    for name in (*parts, "scheduler"):
        source = index.get(name)
        library = str(source[0]) if isinstance(source, list) and source else "nothing"
        if library not in LIBRARIES and not library.startswith("fastdiff."):
            raise ValueError(
                f"{_WHERE}: expected parts of {' or '.join(LIBRARIES)} in {folder}, got {name!r} of"
                f" {library!r}, which would be imported. Write a factory that returns a"
                " fastdiff.jobs.Model for code of your own."
            )
    core = next((name for name in ("unet", "transformer") if name in parts), None)
    if core is None:
        raise ValueError(
            f"{_WHERE}: expected a unet or transformer in {folder}, got the parts {sorted(parts)}."
        )
    missing = [name for name in ENCODERS.get(kind, ()) if name not in parts]
    if missing:
        raise ValueError(
            f"{_WHERE}: expected the part {missing[0]!r} of a {kind} in {folder}, got none."
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
    model.latents = vae is not None
    return model, None if vae is None else Decoder(vae, {"name": "pipe"})


def _load(path: Path, index: dict[str, Any], variant: str | None, dtype: torch.dtype) -> Any:
    # parts that the index lists as absent must be passed as None
    absent: dict[str, Any] = {
        k: None for k, v in index.items() if k in _UNUSED or v == [None, None]
    }
    absent |= {"requires_safety_checker": False} if "requires_safety_checker" in index else {}
    if not importlib.util.find_spec("accelerate"):  # diffusers would warn
        absent["low_cpu_mem_usage"] = False
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
        raise loading_error(f"a diffusers pipeline in {path}", error) from error


def _size(folder: str, network: Any, shape: Sequence[int] | None) -> tuple[int, ...]:
    """Returns the shape of a sample: the network's channels, at its own size or the given one."""
    config = network.config
    channels = config.in_channels
    outputs = getattr(config, "out_channels", None) or channels
    if (
        outputs not in (channels, 2 * channels)
        or getattr(config, "time_cond_proj_dim", None) is not None
    ):
        extra = (
            "a guidance embedding"
            if outputs in (channels, 2 * channels)
            else f"{channels} channels in and {outputs} out"
        )
        raise ValueError(
            f"{_WHERE}: expected a network whose only input is the noised sample in {folder},"
            f" got one with {extra}."
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
    """Returns the function that makes the model's samplers: `Model.sampler`.

    A sampler follows the plan that is passed; without one, the plan of the solver that is named;
    and without both, that of the pipeline's scheduler.
    """

    def make(plan: Any = None, **settings: Any) -> Sampler:
        from ...integrations.networks import from_diffusers

        if dtype != torch.float32:
            # the inputs' dtype: some networks keep a part of their weights in float32
            settings.setdefault("network_dtype", dtype)
        if plan is not None:
            # plans with a learned variance read the second half of the output, others drop it
            learned = bool((plan.column("noise_mode") != 0).any())
            model = from_diffusers(network, **({"channels": None} if learned else {}))
            return Sampler(model, plan=plan, **execution_settings(settings))
        if settings.get("solver") is None:
            settings.pop("solver", None)
            return Sampler.from_diffusers(pipe, **settings)
        from ...integrations.diffusers.sampler_settings import sampler_settings

        model = from_diffusers(network)
        schedule, own = sampler_settings(pipe.scheduler, model, solver=settings["solver"])
        # whether the variance half is read depends on the plan, so compute it first
        return make(Sampler(model, schedule, **{**own, **settings}).plan, **settings)

    return make


# -- the conditions of each pipeline


def _optional_classes(pipe: Any, index: dict[str, Any], size: tuple[int, ...]) -> Conditioning:
    """Returns the conditions of a UNet2DModel: none, or classes without a null label."""
    count = getattr(pipe.unet.config, "num_class_embeds", None)
    return Classes(count, argument="class_labels") if count else Arguments(lambda x, t: x)


def _dit(pipe: Any, index: dict[str, Any], size: tuple[int, ...]) -> Conditioning:
    """Returns classes; the label after the last is "no class" (Peebles & Xie 2023, section 3.2)."""
    count = pipe.transformer.config.num_embeds_ada_norm
    known = index.get("id2label") or {}
    names = (
        tuple(known[str(i)] for i in range(count))
        if all(str(i) in known for i in range(count))
        else ()
    )
    return Classes(count, names, null_label=count, argument="class_labels")


def _stable_diffusion(pipe: Any, index: dict[str, Any], size: tuple[int, ...]) -> Conditioning:
    """Returns prompts (Rombach et al. 2022)."""
    return prompts.Prompts(pipe, prompts.stable_diffusion)


def _stable_diffusion_xl(pipe: Any, index: dict[str, Any], size: tuple[int, ...]) -> Conditioning:
    """Returns prompts with pooled embeddings and size conditions (Podell et al. 2024, section 2.2).

    The sizes are the pictures' own as the original and the target size, without cropping.
    """
    config, encoder = pipe.unet.config, pipe.text_encoder_2
    ids = pipe.unet.add_embedding.linear_1.in_features - encoder.config.projection_dim
    if ids != 6 * config.addition_time_embed_dim:
        raise ValueError(
            f"{_WHERE}: expected a base model of SDXL with six size conditions, got another"
            " kind, such as a refiner."
        )
    height, width = (side * pipe.vae_scale_factor for side in size[1:])
    time_ids = torch.tensor([[height, width, 0, 0, height, width]])
    zeros = bool(pipe.config.force_zeros_for_empty_prompt)
    return prompts.Prompts(
        pipe, prompts.pooled("text_embeds"), zeros=zeros, shared={"time_ids": time_ids}
    )


def _stable_diffusion_3(pipe: Any, index: dict[str, Any], size: tuple[int, ...]) -> Conditioning:
    """Returns prompts with pooled embeddings (Esser et al. 2024)."""
    return prompts.Prompts(pipe, prompts.pooled("pooled_projections", "prompt_2", "prompt_3"))


PIPELINES: dict[str, Callable[[Any, dict[str, Any], tuple[int, ...]], Conditioning]] = {
    "ConsistencyModelPipeline": _optional_classes,
    "DDIMPipeline": _optional_classes,
    "DDPMPipeline": _optional_classes,
    "DiTPipeline": _dit,
    "StableDiffusion3Pipeline": _stable_diffusion_3,
    "StableDiffusionPipeline": _stable_diffusion,
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
}
"""The supported diffusers pipelines, and the function that returns their conditions."""
ENCODERS = {
    "StableDiffusion3Pipeline": ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    "StableDiffusionPipeline": ("text_encoder", "tokenizer"),
    "StableDiffusionXLPipeline": ("text_encoder_2", "tokenizer_2"),
}
"""The parts without which a pipeline cannot encode prompts."""


def _configs(path: Path, parts: Sequence[str]) -> list[Path]:
    """Returns the pipeline's other files: configurations and vocabularies."""
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
