"""Mean and covariance of features, streamed and merged in float64, and their npz file.

    d = m_b - m_a,  m = m_a + d n_b/n,  S = S_a + S_b + d dᵀ n_a n_b/n,  n = n_a + n_b

(Chan, Golub & LeVeque 1979, eq. 2.1 of the pairwise algorithm), where S is the sum of
(x - m)(x - m)ᵀ. Sums of x and x xᵀ would lose all digits where the mean is large.
"""

from __future__ import annotations

import zipfile
import zlib
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..outside import open_regular, shown
from ..pretrained.files import write_atomically

MOST_FEATURES = 1 << 14  # of a file: a larger covariance would need more than 2 GiB
_MEMBERS = ("mu", "sigma", "n", "features")
_WHERE = "fastdiff.metrics"
# what zipfile, zlib and NumPy raise for damaged content
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


class Moments:
    """The number n, the mean and the scatter of what was added so far.

    Args:
        features: their number F.

    Attributes:
        n: the number of samples; None for a file that does not say it.
        mean: float64 [F].
        scatter: float64 [F, F], the sum of (x - mean)(x - mean)ᵀ.
    """

    def __init__(self, features: int) -> None:
        self.n: int | None = 0
        self.mean = torch.zeros(features, dtype=torch.float64)
        self.scatter = torch.zeros(features, features, dtype=torch.float64)

    @property
    def features(self) -> int:
        return len(self.mean)

    @property
    def covariance(self) -> Tensor:
        """scatter/(n - 1), float64 [F, F]. Raises ValueError for fewer than two samples."""
        if self.n is None:
            return self.scatter
        if self.n < 2:
            raise ValueError(
                f"{_WHERE}: expected at least 2 samples for a covariance, got {self.n}."
            )
        return self.scatter / (self.n - 1)

    def add(self, x: Tensor) -> None:
        """Adds samples x [B, F] of any floating type.

        Raises ValueError for another number of features or values that are not finite; nothing is
        added then.
        """
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ValueError(
                f"{_WHERE}: expected features of shape [B, {self.features}], got {list(x.shape)}."
            )
        x = x.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                f"{_WHERE}: expected finite features, got NaN or an infinity. Check the network"
                " that gives them, and the pictures."
            )
        if len(x):
            mean = x.mean(0)
            centred = x - mean
            self._join(len(x), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Adds all samples of `other`, which stays as it is.

        Raises ValueError where one does not know its number of samples, or their features differ
        in number.
        """
        if self.n is None or other.n is None or other.features != self.features:
            raise ValueError(
                f"{_WHERE}: expected moments of {self.features} features with a number of samples"
                f" to merge, got {other.features} and n = {self.n}, {other.n}."
            )
        self._join(other.n, other.mean, other.scatter)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        assert self.n is not None
        if not count:
            return
        total, d = self.n + count, mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(d, d) * (self.n * count / total)
        self.mean = self.mean + d * (count / total)
        self.n = total


def save_moments(path: str | PathLike[str], moments: Moments, features: str = "") -> None:
    """Writes `mu` [F], `sigma` [F, F] (float64), `n` and `features` to an npz file.

    Programs that keep such statistics read `mu` and `sigma`: pytorch-fid and EDM do.

    features: the name of what gave the features, so that others are not compared with them.

    Raises ValueError for fewer than two samples.
    """
    content = {
        "mu": moments.mean.numpy(),
        "sigma": moments.covariance.numpy(),
        "features": np.array(features),
    }
    if moments.n is not None:
        content["n"] = np.array(moments.n, np.int64)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, **content)  # type: ignore[arg-type]

    write_atomically(Path(path), write)


def load_moments(path: str | PathLike[str]) -> tuple[Moments, str]:
    """Returns (moments, name of the features) of an npz file with `mu` and `sigma`.

    Other programs write no `n` and no `features`: then n is None, and the name is empty.

    Raises FileNotFoundError, or ValueError for other content.
    """
    where = f"{_WHERE}: expected mu [F] and sigma [F, F] in {shown(path)}, got"
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            present = {f"{name}.npy" for name in _MEMBERS} & set(archive.namelist())
            found = {name.removesuffix(".npy"): _member(archive, name) for name in present}
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{_WHERE}: expected the file {shown(path)}, got none. Check its path."
        ) from None
    except _UNREADABLE as error:
        raise ValueError(f"{where} unreadable content ({shown(error)}).") from None
    mu, sigma = found.get("mu"), found.get("sigma")
    if mu is None or sigma is None:
        raise ValueError(f"{where} no {'mu' if mu is None else 'sigma'}.")
    number = all(np.issubdtype(v.dtype, np.floating) for v in (mu, sigma))
    if not number or mu.ndim != 1 or not len(mu) or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"{where} {mu.dtype} {list(mu.shape)} and {list(sigma.shape)}.")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{where} NaN or an infinity.")
    n = found.get("n")
    if n is not None and (n.shape or not np.issubdtype(n.dtype, np.integer) or int(n) < 2):
        raise ValueError(f"{where} an n that is no number above 1.")
    moments = Moments(len(mu))
    moments.n = None if n is None else int(n)
    moments.mean = torch.from_numpy(np.array(mu, np.float64))
    moments.scatter = torch.from_numpy(np.array(sigma, np.float64)) * (
        1 if n is None else int(n) - 1
    )
    name = found.get("features", np.array(""))
    return moments, str(name) if name.dtype.kind == "U" and not name.shape else ""


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Returns an array of an npz file; raises ValueError for one that is too large."""
    if archive.getinfo(name).file_size > 8 * MOST_FEATURES**2 + 4096:
        raise ValueError(f"more than {MOST_FEATURES} features")
    with archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)
