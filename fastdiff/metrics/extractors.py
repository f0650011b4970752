"""What turns pictures into features: the shipped network, the pixels themselves, a TorchScript.

A feature extractor is a callable [B, C, H, W] uint8 -> [B, F]. One whose attribute `takes` is
"[-1, 1]" is called with float32 in that range instead.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..grad_mode import restored
from ..outside import open_regular, shown
from ..pretrained.files import load_folder

TAKES = ("uint8", "[-1, 1]")
FASHION = Path(__file__).parent / "fashion-mnist"
RAW, SHIPPED = "raw", "fashion-mnist"
NAMES = (SHIPPED, RAW)
_WHERE = "fastdiff.metrics"


@dataclass(frozen=True)
class Extractor:
    """A function of pictures with what a report says about it.

    Attributes:
        function: [B, C, H, W] -> [B, F].
        name: of the features; statistics of other names are not compared with them.
        title: of the Fréchet distance over them.
        takes: "uint8" or "[-1, 1]" (float32).
        shape: (C, H, W) that it needs; None for any.
    """

    function: Callable[[Tensor], Tensor]
    name: str
    title: str
    takes: str = "uint8"
    shape: tuple[int, ...] | None = None

    @restored
    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Returns the features [B, F] of pictures uint8 [B, C, H, W], or of points [B, …] float.

        Raises ValueError for pictures of another shape than it needs, and for other results.
        """
        if self.shape is not None and tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"{_WHERE}: expected pictures of shape {list(self.shape)} for the features"
                f" {shown(self.name)}, got {list(x.shape[1:])}. Resize them, or use other features."
            )
        if self.takes == "[-1, 1]" and x.dtype == torch.uint8:
            x = x.to(torch.float32) / 127.5 - 1.0
        found: Any = self.function(x)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(x):
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"{_WHERE}: expected features [{len(x)}, F] from {shown(self.name)}, got {got}."
            )
        return found.detach()


def fashion_network() -> nn.Sequential:
    """Returns the untrained network of FD-fashion: [N, 1, 28, 28] in [-1, 1] -> [N, 10] logits.

    All layers but the last give the 128 features.
    """

    def block(c_in: int, c_out: int) -> list[nn.Module]:
        return [
            nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]

    layers = [
        *block(1, 32),
        *block(32, 64),
        *block(64, 96),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(96 * 9, 128),
    ]
    network = nn.Sequential(*layers, nn.ReLU(), nn.Linear(128, 10))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def fashion_classifier() -> nn.Sequential:
    """Returns the shipped classifier of Fashion-MNIST in eval mode, float32.

    Its weights are stored in float16; fastdiff/metrics/fashion-mnist/config.json has the command
    that trained them, and the share of the test images that it classifies correctly.
    """
    _, tensors = load_folder(FASHION)
    network = fashion_network().eval()
    network.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    )
    return network.requires_grad_(False)


def fashion() -> Extractor:
    """Returns the 128 features of the shipped classifier, for pictures of shape [1, 28, 28].

    Distances over them are called FD-fashion: they are no FID, which has Inception's features.
    """
    return Extractor(fashion_classifier()[:-1], SHIPPED, "FD-fashion", "[-1, 1]", (1, 28, 28))


def raw() -> Extractor:
    """Returns the extractor that flattens: pixels in [-1, 1], or points as they are."""
    return Extractor(lambda x: x.flatten(1), RAW, "FD (raw)", "[-1, 1]")


def torchscript(path: str | PathLike[str], *, inception: bool = False) -> Extractor:
    """Returns the features of a TorchScript file, which is run: open only files that you trust.

    It is called as m(x), or as m(x, return_features=True) where its forward has that argument, with
    x uint8 [B, C, H, W]. Grey pictures are repeated to three channels for `inception`.

    Args:
        path: of the file.
        inception: it is NVIDIA's TorchScript of Inception-v3 (`inception-2015-12-05.pt`), which
            has that argument, and the distance is FID.

    Raises FileNotFoundError, or ValueError for other files, such as a state dict, which has weights
    without a network.
    """
    where = f"{_WHERE}: expected a TorchScript file in {shown(path)}, got"
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except FileNotFoundError:
        raise FileNotFoundError(f"{where} none. Check its path.") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{where} another file ({shown(error)}). Save the network with torch.jit.save."
        ) from None
    if not any("/code/" in name for name in names):
        raise ValueError(
            f"{where} a state dict: weights without a network. Save the network that has them with"
            " torch.jit.save, or name a function that returns it: pkg:factory."
        )
    try:
        module = torch.jit.load(str(path), map_location="cpu").eval()
        arguments = [argument.name for argument in module.forward.schema.arguments]
    except RuntimeError as error:
        raise ValueError(
            f"{where} one that this torch cannot load ({shown(str(error).splitlines()[0])})."
        ) from None
    options = {"return_features": True} if "return_features" in arguments else {}
    if inception and not options:
        raise ValueError(
            f"{where} one without return_features: not NVIDIA's Inception. Use it as --features."
        )

    def call(x: Tensor) -> Tensor:
        if inception and x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        return module(x, **options)

    name = "inception" if inception else Path(path).name
    return Extractor(call, name, "FID" if inception else f"FD ({shown(name)})")


def of_callable(function: Any, name: str) -> Extractor:
    """Returns the extractor of a user's callable; its attribute `takes` says what it takes.

    A module is put into eval mode. Raises TypeError for what cannot be called, ValueError for
    another value of `takes`.
    """
    if isinstance(function, Extractor):
        return function
    takes = getattr(function, "takes", "uint8")
    if not callable(function):
        raise TypeError(
            f"{_WHERE}: expected {shown(name)} to give a callable of pictures, got"
            f" {type(function).__name__}."
        )
    if takes not in TAKES:
        raise ValueError(
            f"{_WHERE}: expected takes in {list(TAKES)} of {shown(name)}, got {shown(takes)}."
        )
    if isinstance(function, nn.Module):
        function = function.eval()
    return Extractor(function, name, f"FD ({shown(name)})", takes)
