"""Folders of diffusers pipelines as models: compared with the pipelines' own calls.

One file over 400 lines: all cases use the same saved pipelines.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from tolerances import DROP_IN_PIPELINE

import fastdiff
from fastdiff import Sampler, Schedule
from fastdiff.integrations.networks import from_diffusers
from fastdiff.jobs import Job, Model, open_model
from fastdiff.jobs.models import InvalidEntry

pytest.importorskip("transformers", reason="prompts are encoded by transformers")

import pipelines as tiny  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

MAKERS: dict[str, Callable[[], Any]] = {
    "plain": tiny.plain,
    "ddim": lambda: tiny.plain(diffusers.DDIMScheduler()),
    "classes": lambda: tiny.plain(num_class_embeds=3),
    "range": lambda: tiny.plain(
        diffusers.DDPMScheduler(variance_type="learned_range"), learned=True
    ),
    "dit": tiny.dit,
    "sigma": lambda: tiny.dit(classes=3, learned=True),
    "text": tiny.stable,
    "xl": tiny.xl,
    "xl_empty": lambda: tiny.xl(zeros=False),
    "three": tiny.three,
    "edm": lambda: tiny.plain(diffusers.EDMEulerScheduler()),
}
PROMPTS = ["a red shoe", "bag"]
NEGATIVE = [None, "blue"]
LATENTS = fastdiff.randn((2, 4, 8, 8), seed=6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    made: dict[str, str] = {}

    def folder(name: str) -> str:
        if name not in made:
            made[name] = tiny.saved(MAKERS[name](), tmp_path_factory.mktemp("pipelines") / name)
        return made[name]

    return folder


def loaded(folder: str) -> Any:
    found = json.loads((Path(folder) / "model_index.json").read_text())
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        folder, **{k: None for k, v in found.items() if v == [None, None]}
    )
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            # for weights that require gradients torch uses another product, also under no_grad
            part.requires_grad_(False)
    return pipe


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert (
        text.startswith("fastdiff.")
        and ": expected " in text
        and ", got " in text
        and "\n" not in text
    ), text
    return text


def draw(sampler: Sampler, model: Model, entries: list[Any], **more: Any) -> torch.Tensor:
    cond, uncond = model.conditions(entries)
    return sampler.sample((len(entries), *model.shape), seed=1, cond=cond, uncond=uncond, **more)


def same_as_a_workers(model: Model, entries: list[Any], **settings: Any) -> torch.Tensor:
    """Returns the samples of a new plan, after comparing a worker's with them bit for bit."""
    first = model.sampler(**settings)
    drawn = draw(first, model, entries)
    execution = {k: v for k, v in settings.items() if k in ("guidance_scale", "network_dtype")}
    assert torch.equal(draw(model.sampler(plan=first.plan, **execution), model, entries), drawn)
    assert torch.isfinite(drawn).all()
    return drawn


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert (got - expected).abs().max() <= DROP_IN_PIPELINE * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize(
    "name, more",
    [("plain", {}), ("ddim", {"eta": 0.5}), ("range", {}), ("plain", {"timesteps": [900, 40]})],
)
def test_pictures_without_conditions(
    name: str, more: dict[str, Any], folders: Callable[[str], str]
) -> None:
    model = open_model(folders(name))
    assert (
        model.shape == (3, 8, 8)
        and model.default_entries == [None]
        and model.conditions([None]) == (None, None)
    )
    settings = {**({} if "timesteps" in more else {"steps": 4}), **more}
    drawn = same_as_a_workers(model, [None, None], **settings)
    by_hand = Sampler.from_diffusers(loaded(folders(name)), **settings)
    assert torch.equal(by_hand.sample((2, 3, 8, 8), seed=1), drawn)


def test_classes_of_pictures(folders: Callable[[str], str]) -> None:
    model = open_model(folders("classes"))
    assert model.default_entries == [0, 1, 2] and model.labels([2, 0]) == [2, 0]
    drawn = same_as_a_workers(model, [2, 0], steps=3)
    by_hand = Sampler.from_diffusers(loaded(folders("classes")), steps=3)
    assert torch.equal(
        by_hand.sample((2, 3, 8, 8), seed=1, cond={"class_labels": torch.tensor([2, 0])}), drawn
    )
    assert model.conditions([0])[1] is None  # the network has no label for "no class"


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_classes_of_latents_against_the_pipeline(
    scale: float, folders: Callable[[str], str]
) -> None:
    """DiTPipeline draws its latents from a generator: the same ones are passed here."""
    model = open_model(folders("dit"), decode="pipe")
    sampler = model.sampler(steps=5, guidance_scale=scale)
    pipe = loaded(folders("dit"))
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pipe(
            class_labels=[3, 999],
            guidance_scale=scale,
            num_inference_steps=5,
            output_type="pt",
            generator=torch.Generator().manual_seed(0),
        ).images
    assert model.decode is not None
    close((model.decode(draw(sampler, model, [3, 999], x_T=start)) / 2 + 0.5).clamp(0, 1), expected)


def test_a_learned_variance_is_read_by_those_who_use_it(folders: Callable[[str], str]) -> None:
    model = open_model(folders("sigma"))
    assert model.default_entries == [0, 1, 2]
    same_as_a_workers(model, [2, 0], steps=4, guidance_scale=2.0)
    learned = same_as_a_workers(
        model, [2, 0], steps=4, solver="ddpm", variance_type="learned_range"
    )
    assert not torch.equal(learned, same_as_a_workers(model, [2, 0], steps=4, solver="ddpm"))


def test_names_of_classes(folders: Callable[[str], str], tmp_path: Path) -> None:
    shutil.copytree(folders("sigma"), tmp_path / "named")
    index = tmp_path / "named" / "model_index.json"
    content = json.loads(index.read_text())
    content["id2label"] = {"0": "tench, Tinca tinca", "1": "goldfish", "2": "shark"}
    index.write_text(json.dumps(content))
    model = open_model(str(tmp_path / "named"))
    assert (
        model.classes == ("tench, Tinca tinca", "goldfish", "shark")
        and model.conditioning.parse("Tinca tinca") == 0
    )
    assert open_model(folders("sigma")).classes == ()


@pytest.mark.parametrize(
    "name, scale", [("text", 1.0), ("text", 5.0), ("xl", 5.0), ("xl_empty", 5.0), ("three", 5.0)]
)
def test_prompts_against_the_pipeline(
    name: str, scale: float, folders: Callable[[str], str]
) -> None:
    """Each entry is as the pipeline samples it alone: other negative prompts change nothing."""
    model = open_model(folders(name))
    entries = [
        model.conditioning.parse({"prompt": p, "negative_prompt": n})
        for p, n in zip(PROMPTS, NEGATIVE, strict=True)
    ]
    assert model.conditioning.parse(PROMPTS[0]) == entries[0]
    sampler = model.sampler(steps=4, guidance_scale=scale)
    got = draw(sampler, model, entries, x_T=LATENTS * sampler.plan.initial_std)
    pipe = fastdiff.swap(loaded(folders(name)))
    side = 8 * pipe.vae_scale_factor
    for i in range(2):
        with torch.no_grad():
            expected = pipe(
                prompt=PROMPTS[i],
                negative_prompt=NEGATIVE[i],
                latents=LATENTS[i : i + 1],
                guidance_scale=scale,
                num_inference_steps=4,
                output_type="latent",
                height=side,
                width=side,
            ).images
        close(got[i : i + 1], expected)
    same_as_a_workers(model, entries, steps=3, guidance_scale=scale)


def test_prompts_by_hand(folders: Callable[[str], str]) -> None:
    model, pipe = open_model(folders("text")), loaded(folders("text"))
    with torch.no_grad():
        cond, uncond = pipe.encode_prompt(PROMPTS, "cpu", 1, True, ["", "blue"])
    by_hand = Sampler.from_diffusers(pipe, steps=3, guidance_scale=5.0).sample(
        (2, 4, 8, 8),
        seed=1,
        cond={"encoder_hidden_states": cond},
        uncond={"encoder_hidden_states": uncond},
    )
    entries = [
        model.conditioning.parse(PROMPTS[0]),
        model.conditioning.parse({"prompt": "bag", "negative_prompt": "blue"}),
    ]
    assert torch.equal(same_as_a_workers(model, entries, steps=3, guidance_scale=5.0), by_hand)
    assert model.default_entries is None and model.labels(entries) is None and model.classes == ()
    for wrong in (
        3,
        None,
        [],
        {},
        {"negative_prompt": "x"},
        {"prompt": 3},
        {"prompt": "x", "negative_prompt": 3},
        {"prompt": "x", "y": 1},
    ):
        with pytest.raises(InvalidEntry) as caught:
            model.conditioning.parse(wrong)
        one_sentence(caught.value)


@pytest.mark.parametrize("name", ["text", "xl", "three"])
def test_networks_of_another_dtype_take_the_prompts(
    name: str, folders: Callable[[str], str]
) -> None:
    model = open_model(folders(name))
    entries = [model.conditioning.parse(p) for p in PROMPTS]
    settings = {"steps": 2, "guidance_scale": 3.0}
    rough = same_as_a_workers(model, entries, **settings, network_dtype=torch.bfloat16)
    exact = same_as_a_workers(model, entries, **settings)
    assert not torch.equal(rough, exact)
    assert (rough - exact).norm() < 0.1 * exact.norm()
    half = open_model(folders(name), dtype=torch.bfloat16)
    assert half.identity["dtype"] == "bfloat16" and half.conditions(entries)[0] is not None
    assert half.conditions(entries)[0]["encoder_hidden_states"].dtype == torch.bfloat16  # type: ignore[index]
    assert torch.isfinite(draw(half.sampler(**settings), half, entries)).all()


def test_other_sizes_and_decoders(folders: Callable[[str], str], tmp_path: Path) -> None:
    folder = folders("xl")
    wide = open_model(folder, shape=(4, 8, 16), decode="pipe")
    cond, uncond = wide.conditions([wide.conditioning.parse("bag")])
    assert cond is not None and cond["time_ids"].tolist() == [[16, 32, 0, 0, 16, 32]]
    latents = draw(wide.sampler(steps=1), wide, [wide.conditioning.parse("bag")])
    assert wide.decode is not None and wide.decode(latents).shape == (1, 3, 16, 32)
    own = open_model(folder, decode="pipe")
    by_hand = Sampler.from_diffusers(pipe := loaded(folder), steps=1, decode=pipe.vae).decode(
        LATENTS
    )
    assert own.decode is not None and torch.equal(own.decode(LATENTS), by_hand)
    # another VAE, from a folder, and one with another class name
    shifted = tiny.vae(shift_factor=0.25, scaling_factor=0.5).requires_grad_(False)
    other = open_model(folder, decode=tiny.saved(shifted, tmp_path / "vae"))
    assert other.decode is not None
    assert torch.equal(other.decode(LATENTS), shifted.decode(LATENTS / 0.5 + 0.25).sample)
    again = open_model(folder, decode=str(tmp_path / "vae"))
    assert again.identity == other.identity
    decoders = [m.identity["decode"] for m in (own, other, open_model(folder))]
    assert len({str(d) for d in decoders}) == 3 and decoders[2] is None
    for name, decode in (
        (folders("plain"), str(tmp_path / "vae")),
        (folder, f"{folder}/unet"),
        (folders("plain"), "pipe"),
    ):
        with pytest.raises(ValueError) as caught:
            open_model(name, decode=decode)
        one_sentence(caught.value)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_latents_are_no_pictures(channels: int, tmp_path: Path) -> None:
    """Latents of one or three channels are stored as float32, like those of four."""
    folder = tiny.saved(tiny.dit(channels=channels), tmp_path)
    settings: dict[str, Any] = {"ids": (0, 1), "unit": 2, "steps": 2, "threads": 1}
    latents = Job.plan(folder, **settings)
    assert not latents.pictures
    drawn = latents.draw(0).array
    assert drawn.dtype == torch.float32 and drawn.shape == (2, channels, 8, 8)
    assert Job.plan(folder, decode="pipe", **settings).pictures


def test_solvers_of_ones_own(folders: Callable[[str], str]) -> None:
    """Solvers use the scheduler's betas, prediction type and clipping, or the flow's shift."""
    model, pipe = open_model(folders("plain")), loaded(folders("plain"))
    drawn = same_as_a_workers(model, [None, None], solver="dpm++2m", steps=4)
    schedule = Schedule.from_betas(pipe.scheduler.betas.double().numpy())
    by_hand = Sampler(
        from_diffusers(pipe.unet), schedule, solver="dpm++2m", steps=4, clip_range=1.0
    )
    assert torch.equal(by_hand.sample((2, 3, 8, 8), seed=1), drawn)
    flow, pipe = open_model(folders("three")), loaded(folders("three"))
    entries = [flow.conditioning.parse(p) for p in PROMPTS]
    cond, _ = flow.conditions(entries)
    network = from_diffusers(pipe.transformer)
    by_hand = Sampler(
        network, Schedule.flow(1000, shift=3.0), solver="heun", steps=3, prediction_type="flow"
    )
    assert torch.equal(
        same_as_a_workers(flow, entries, solver="heun", steps=3),
        by_hand.sample((2, 4, 8, 8), seed=1, cond=cond),
    )
    with pytest.raises(ValueError, match="EDMEulerScheduler") as caught:
        open_model(folders("edm")).sampler(solver="heun", steps=3)
    one_sentence(caught.value)
    with pytest.raises(ValueError, match="solver"):
        model.sampler(solver="no such")


@pytest.mark.parametrize(
    "config",
    [
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "clip_sample": False},
        {"thresholding": True, "sample_max_value": 1.5},
    ],
)
def test_solvers_of_ones_own_read_the_configuration(config: dict[str, Any], tmp_path: Path) -> None:
    model = open_model(tiny.saved(tiny.plain(diffusers.DDIMScheduler(**config)), tmp_path))
    info = model.sampler(solver="dpm++2m", steps=3).plan.info
    if "thresholding" in config:
        assert info["clip_range"] == 1.5 and info["dynamic_threshold"] == 0.995
    else:
        assert info["prediction_type"] == "v" and info["clip_range"] is None
        levels = model.sampler(solver="dpm++2m", steps=3).plan.levels
        assert levels is not None and levels[0].tolist() == [0.0, 1.0]


def test_identities_follow_weights_and_configurations(
    folders: Callable[[str], str], tmp_path: Path
) -> None:
    folder = tmp_path / "pipe"
    shutil.copytree(folders("text"), folder)
    before = open_model(str(folder)).identity
    assert (
        open_model(str(folder)).identity == before
        and before["versions"]["diffusers"] == diffusers.__version__
    )
    for part, file, fact in (
        ("unet", "diffusion_pytorch_model.safetensors", "weights_sha256"),
        ("text_encoder", "model.safetensors", "weights_sha256"),
        ("scheduler", "scheduler_config.json", "config_sha256"),
    ):
        path = folder / part / file
        original = path.read_bytes()
        if file.endswith(".json"):
            path.write_bytes(original + b"\n")
        else:
            tensors = load_file(path)
            next(iter(tensors.values())).view(-1)[0] += 2.0**-20
            save_file(tensors, path, metadata={"format": "pt"})
        after = open_model(str(folder)).identity
        assert {k for k in after if after[k] != before[k]} == {fact}
        path.write_bytes(original)
    # weights that are not loaded, and foreign files, change nothing
    shutil.copy(
        folder / "unet" / "diffusion_pytorch_model.safetensors",
        folder / "unet" / "diffusion_pytorch_model.ema.safetensors",
    )
    (folder / "README.md").write_text("about it")
    assert open_model(str(folder)).identity == before


def test_a_folder_of_a_variant_alone(tmp_path: Path) -> None:
    pipe = tiny.plain()
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").exists()
    model = open_model(str(tmp_path))
    expected = Sampler.from_diffusers(pipe, steps=2).sample((2, 3, 8, 8), seed=1)
    assert torch.equal(draw(model.sampler(steps=2), model, [None] * 2), expected)


def test_pipelines_that_are_refused(folders: Callable[[str], str], tmp_path: Path) -> None:
    def changed(name: str, change: Callable[[Path], Any]) -> str:
        folder = tmp_path / f"{name}{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folders(name), folder)
        change(folder)
        return str(folder)

    def renamed(folder: Path) -> None:
        path = folder / "unet" / "diffusion_pytorch_model.safetensors"
        path.rename(path.with_suffix(".bin"))

    def rewritten(file: str, **values: Any) -> Callable[[Path], Any]:
        def change(folder: Path) -> None:
            path = folder / file
            path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

        return change

    cases = {
        changed("plain", rewritten("model_index.json", _class_name="FluxPipeline")): "FluxPipeline",
        changed("plain", rewritten("model_index.json", _class_name=["a", "B"])): "among",
        changed("plain", rewritten("model_index.json", unet=[None, None])): "unet or transformer",
        changed(
            "plain", rewritten("model_index.json", unet=["antigravity", "UNet2DModel"])
        ): "'unet' of 'antigravity', which would be imported",
        changed(
            "plain", rewritten("model_index.json", scheduler=["their.code", "Scheduler"])
        ): "'scheduler' of 'their.code'",
        changed("plain", rewritten("unet/config.json", block_out_channels=[8, 8])): "pipeline",
        changed("plain", rewritten("unet/config.json", sample_size=None)): "sample_size",
        changed("plain", renamed): "pickle",
        changed(
            "plain", lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        ): "weights",
        changed(
            "plain",
            lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x"),
        ): "pipeline",
        changed("plain", lambda f: (f / "model_index.json").write_text("{")): "JSON",
        changed("text", rewritten("model_index.json", text_encoder=[None, None])): "text_encoder",
        tiny.saved(tiny.stable(time_cond_proj_dim=8), tmp_path / "distilled"): "guidance embedding",
    }
    for folder, words in cases.items():
        with pytest.raises(ValueError, match=words) as caught:
            open_model(folder)
        one_sentence(caught.value)
    for shape in ((3, 8, 8), (4, 8), (4, 0, 8)):
        with pytest.raises(ValueError, match="shape") as caught:
            open_model(folders("text"), shape=shape)
        one_sentence(caught.value)


def test_a_factory_may_return_a_pipelines_sampler(
    folders: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "their_pipe.py").write_text(
        "import diffusers, fastdiff\n"
        f"pipe = diffusers.DiffusionPipeline.from_pretrained({folders('dit')!r})\n"
        "def make():\n"
        "    return fastdiff.Sampler.from_diffusers(pipe, steps=3, decode=pipe.vae)\n"
    )
    model = open_model("their_pipe:make", shape=(4, 8, 8))
    pipe = loaded(folders("dit"))
    labels = torch.tensor([5, 6])
    expected = Sampler.from_diffusers(pipe, steps=3, decode=pipe.vae).sample(
        (2, 4, 8, 8), seed=1, cond={"class_labels": labels}
    )
    entries = [model.conditioning.parse({"class_labels": int(v)}) for v in labels]
    assert model.decode is not None
    assert torch.equal(model.decode(same_as_a_workers(model, entries)), expected)
    assert model.identity["decode"]["weights_sha256"] and model.identity["weights_sha256"]
