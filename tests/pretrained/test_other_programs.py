"""Weights of other programs: the network here computes what the other one computes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff.models import AttentionUNet, DiT, network
from fastdiff.pretrained import from_diffusers_model, from_dit_checkpoint

TOLERANCE = 1e-5
UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (8, 16, 24),
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
UNETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "as ddpm-cifar10-32": {
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "attention_head_dim": None,
        "norm_eps": 1e-6,
    },
    "scale and shift, classes": {"resnet_time_scale_shift": "scale_shift", "num_class_embeds": 5},
    "a norm in the middle": {
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 4,
        "norm_eps": 1e-3,
        "time_embedding_dim": 20,
    },
    "no attention in the middle, learned variance": {"add_attention": False, "out_channels": 6},
    "one block, other channels": {"layers_per_block": 1, "in_channels": 2, "out_channels": 1},
}
DIT: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 3,
    "sample_size": 8,
    "num_embeds_ada_norm": 7,
}
DITS: dict[str, dict[str, Any]] = {
    "plain": {},
    "learned variance": {"out_channels": 8, "patch_size": 4},
    "no biases, exact GELU, other norm": {
        "attention_bias": False,
        "activation_fn": "gelu",
        "norm_eps": 1e-3,
    },
}
T = torch.tensor([0, 17, 500, 999])


def stirred(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15 if parameter.ndim > 1 else 0.2)
    return model.eval()


def unet(**changes: Any) -> Any:
    return stirred(diffusers.UNet2DModel(**UNET | changes))


def dit(same: bool = True, **changes: Any) -> Any:
    made = stirred(diffusers.DiTTransformer2DModel(**DIT | changes))
    for block in made.transformer_blocks[1:] if same else ():
        block.norm1.emb.load_state_dict(made.transformer_blocks[0].norm1.emb.state_dict())
    return made


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.05, "an output that says something"
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", sorted(UNETS))
@torch.no_grad()
def test_unets_of_diffusers(name: str) -> None:
    theirs = unet(**UNETS[name])
    ours = from_diffusers_model(theirs)
    assert isinstance(ours, AttentionUNet) and not ours.training
    x = torch.randn(4, theirs.config.in_channels, 16, 16)
    if theirs.config.num_class_embeds:
        y = torch.tensor([0, 4, 2, 1])
        assert_close(ours(x, T, y), theirs(x, T, class_labels=y).sample)
        assert ours.null_label is None
    else:
        assert_close(ours(x, T), theirs(x, T).sample)


@pytest.mark.parametrize("same", [True, False], ids=["one embedding", "one for each block"])
@pytest.mark.parametrize("name", sorted(DITS))
@torch.no_grad()
def test_dits_of_diffusers(name: str, same: bool) -> None:
    theirs = dit(same, **DITS[name])
    ours = from_diffusers_model(theirs)
    assert isinstance(ours, DiT) and ours.config["shared"] == same and ours.null_label == 7
    x, y = torch.randn(4, 4, 8, 8), torch.tensor([0, 3, 6, 7])
    assert_close(ours(x, T, y), theirs(x, T, y).sample)


@pytest.mark.parametrize("made", [unet, dit])
@torch.no_grad()
def test_a_folder_of_diffusers(made: Any, tmp_path: Path) -> None:
    theirs = made()
    theirs.save_pretrained(tmp_path)
    ours, same = from_diffusers_model(tmp_path), from_diffusers_model(theirs)
    assert ours.config == same.config and not ours.training
    for a, b in zip(ours.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_the_names_of_attention_in_older_files(tmp_path: Path) -> None:
    theirs = unet()
    theirs.save_pretrained(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, value in theirs.state_dict().items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.") if "attentions" in name else name
        state[name] = value
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    x = torch.randn(4, 3, 16, 16)
    assert_close(from_diffusers_model(tmp_path)(x, T), theirs(x, T).sample)


def test_unet_cifar_is_the_network_of_ddpm_cifar10() -> None:
    """The config of google/ddpm-cifar10-32, as published with the weights."""
    published = {
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [128, 256, 256, 256],
        "center_input_sample": False,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    }
    ours = from_diffusers_model(diffusers.UNet2DModel(**published))
    assert ours.config == network("unet-cifar").config | {
        "out_channels": 3,
        "null_class": False,
    }


class Original(nn.Module):
    """A DiT under the names of facebookresearch/DiT, from the formulas of Peebles & Xie 2023."""

    def __init__(
        self,
        size: int,
        patch: int,
        channels: int,
        hidden: int,
        depth: int,
        heads: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.sizes = (size, patch, channels, hidden, depth, heads)
        shapes: dict[str, tuple[int, ...]] = {
            "x_embedder.proj": (hidden, channels, patch, patch),
            "t_embedder.mlp.0": (hidden, 256),
            "t_embedder.mlp.2": (hidden, hidden),
            "final_layer.linear": (patch * patch * 2 * channels, hidden),
            "final_layer.adaLN_modulation.1": (2 * hidden, hidden),
        }
        for i in range(depth):
            shapes |= {
                f"blocks.{i}.attn.qkv": (3 * hidden, hidden),
                f"blocks.{i}.attn.proj": (hidden, hidden),
                f"blocks.{i}.mlp.fc1": (4 * hidden, hidden),
                f"blocks.{i}.mlp.fc2": (hidden, 4 * hidden),
                f"blocks.{i}.adaLN_modulation.1": (6 * hidden, hidden),
            }
        torch.manual_seed(0)
        self.state = {f"{k}.weight": 0.15 * torch.randn(v) for k, v in shapes.items()}
        self.state |= {f"{k}.bias": 0.2 * torch.randn(v[0]) for k, v in shapes.items()}
        self.state["y_embedder.embedding_table.weight"] = torch.randn(classes + 1, hidden)
        self.state["pos_embed"] = self.grid(size // patch, hidden)

    @staticmethod
    def grid(side: int, hidden: int) -> Tensor:
        """Entry by entry: the column's sines and cosines, then the row's."""
        out = torch.zeros(1, side * side, hidden, dtype=torch.float64)
        quarter = hidden // 4
        for row in range(side):
            for column in range(side):
                for i in range(quarter):
                    w = 10000.0 ** (-i / quarter)
                    values = (
                        math.sin(column * w),
                        math.cos(column * w),
                        math.sin(row * w),
                        math.cos(row * w),
                    )
                    for part, value in enumerate(values):
                        out[0, row * side + column, part * quarter + i] = value
        return out.float()

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        size, p, channels, hidden, depth, heads = self.sizes
        side = size // p
        # a token is its patch, flattened channel by channel
        cut = x.reshape(-1, channels, side, p, side, p).permute(0, 2, 4, 1, 3, 5).flatten(3)
        tokens = cut.flatten(1, 2) @ self.state["x_embedder.proj.weight"].flatten(1).T
        h = tokens + self.state["x_embedder.proj.bias"] + self.state["pos_embed"]
        w = 10000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
        angle = (t[:, None].double() * w).float()
        code = torch.cat([angle.cos(), angle.sin()], 1)
        e = self.linear("t_embedder.mlp.2", F.silu(self.linear("t_embedder.mlp.0", code)))
        e = F.silu(e + self.state["y_embedder.embedding_table.weight"][y])
        for i in range(depth):
            name = f"blocks.{i}."
            parts = self.linear(name + "adaLN_modulation.1", e)[:, None].split(hidden, 2)
            shift1, scale1, gate1, shift2, scale2, gate2 = parts
            m = F.layer_norm(h, (hidden,), eps=1e-6) * (1 + scale1) + shift1
            q, k, v = self.linear(name + "attn.qkv", m).split(hidden, 2)
            mixed = []
            for j in range(heads):
                d = slice(j * hidden // heads, (j + 1) * hidden // heads)
                weights = q[..., d] @ k[..., d].mT / math.sqrt(hidden // heads)
                mixed.append(weights.softmax(-1) @ v[..., d])
            h = h + gate1 * self.linear(name + "attn.proj", torch.cat(mixed, 2))
            m = F.layer_norm(h, (hidden,), eps=1e-6) * (1 + scale2) + shift2
            inner = self.linear(name + "mlp.fc1", m)
            inner = (
                0.5
                * inner
                * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
            )
            h = h + gate2 * self.linear(name + "mlp.fc2", inner)
        shift, scale = self.linear("final_layer.adaLN_modulation.1", e)[:, None].split(hidden, 2)
        h = F.layer_norm(h, (hidden,), eps=1e-6) * (1 + scale) + shift
        h = self.linear("final_layer.linear", h)
        out = torch.zeros(len(x), 2 * channels, size, size)
        for row in range(side):
            for column in range(side):
                patch = h[:, row * side + column].reshape(len(x), p, p, 2 * channels)
                rows, columns = slice(row * p, row * p + p), slice(column * p, column * p + p)
                out[:, :, rows, columns] = patch.permute(0, 3, 1, 2)
        return out


@pytest.fixture(scope="module")
def original() -> Original:
    return Original(size=12, patch=3, channels=4, hidden=24, depth=2, heads=4, classes=5)


@torch.no_grad()
def test_checkpoints_of_dit_s_own_code(original: Original, tmp_path: Path) -> None:
    save_file(original.state, tmp_path / "dit.safetensors")
    x, y = torch.randn(4, 4, 12, 12), torch.tensor([0, 5, 3, 1])
    for source in (original.state, tmp_path / "dit.safetensors"):
        ours = from_dit_checkpoint(source, heads=4)
        # its angles are products in float32, the oracle's in float64, which differ by t 2^-24
        torch.testing.assert_close(
            ours(x, T // 50, y), original(x, T // 50, y), rtol=1e-5, atol=1e-5
        )
        assert ours.null_label == 5 and ours.config["learn_sigma"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"time_embedding_type": "fourier"}, "expected time_embedding_type as 'positional'"),
        ({"upsample_type": "resnet"}, "expected upsample_type as 'conv'"),
        ({"class_embed_type": "timestep"}, "expected class_embed_type as None"),
        ({"act_fn": "relu"}, "expected act_fn as 'silu' or 'swish'"),
        ({"up_block_types": ("UpBlock2D",) * 3}, "the same way up"),
        ({"sample_size": (16, 8)}, "the size of square images"),
        ({"center_input_sample": True}, "expected center_input_sample as False"),
    ],
)
def test_options_that_the_networks_lack_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        from_diffusers_model(diffusers.UNet2DModel(**UNET | change))


def test_tensors_of_another_network_are_refused(original: Original, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a model of diffusers among .*, got Linear"):
        from_diffusers_model(nn.Linear(2, 2))
    unet().save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    state = {k: v.clone() for k, v in unet().state_dict().items()}
    for change, sentence in (
        ({"conv_in.weight": None}, "expected the tensor 'conv_in.weight' .* got none"),
        ({"more": torch.zeros(2)}, "expected only tensors .* got 'more' too"),
        ({"conv_in.weight": torch.zeros(8, 3, 1, 1)}, "expected .* for 'conv_in.weight'"),
    ):
        save_file({k: v for k, v in {**state, **change}.items() if v is not None}, weights)
        with pytest.raises(ValueError, match=sentence):
            from_diffusers_model(tmp_path)
    for change, sentence in (
        ({"pos_embed": torch.zeros(1, 16, 24)}, "expected the sines and cosines"),
        ({"pos_embed": None}, "expected the tensor 'pos_embed'"),
        ({"blocks.1.mlp.fc2.weight": None}, "blocks.1.mlp.fc2.weight"),
    ):
        changed = {k: v for k, v in {**original.state, **change}.items() if v is not None}
        with pytest.raises(ValueError, match=sentence):
            from_dit_checkpoint(changed, heads=4)
    with pytest.raises(ValueError, match="expected heads for a DiT of width 24"):
        from_dit_checkpoint(original.state)
