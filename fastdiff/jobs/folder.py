"""A dataset's folder: its layout, and how a unit is written to it completely or not at all.

    spec.json                    the run spec, written first
    conditions-<hash>.txt        the conditions file, where the run has one; .npy for pictures
    shards/00012/000012345.npy   the samples of unit 12345 (other formats: fastdiff.jobs.formats)
    trajectories/…               its trajectories, where the run saves them
    units/00012/000012345.json   its record: ids, labels, hashes, timing. Written last; a unit with
                                 a record is done
    failed/000012345.json        a unit whose samples were not finite in two attempts
    earlier/000012345.json       the record of a unit before it gained samples
    log/, tmp/                   per worker: a file of events, and a folder of unfinished files
    manifest.jsonl, grid.png     made from the records when all units are done
    verify.json                  the damaged units that `fastdiff verify` found, for `resume`

Files are written under tmp/, flushed to disk and renamed, and their folder is flushed, so that a
name never refers to a partial file. Two workers that make the same unit write the same bytes over
each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from ..outside import parse_json, read_bytes, read_object, shown
from ..pretrained.files import sync_folder
from .records import failed_unit, record_name, unit_numbers, with_checksum
from .spec import RunSpec

SPEC = "spec.json"
DAY = 86_400  # seconds
Content = bytes | Sequence[bytes | memoryview]  # of a file; its pieces, where they need no copy


class Folder:
    """A dataset's folder. Raises FileNotFoundError or ValueError where there is none.

    Attributes:
        path: of the folder.
        spec: the run spec.
        worker: the name of this process in logs, records and tmp/.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        file = self.path / SPEC
        if not file.exists():
            raise FileNotFoundError(
                f"fastdiff.jobs: expected a dataset in {shown(self.path)}, got no {SPEC} there."
                " Name the folder of a run."
            )
        self.spec = RunSpec.from_json(read_object(file, "fastdiff.jobs", "a run spec"), shown(file))
        self.worker = _worker()
        self._temporary = self.path / "tmp" / self.worker
        self._made: set[Path] = set()

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], spec: RunSpec, conditions: Path | bytes | None = None
    ) -> Folder:
        """Writes the spec into a new or empty folder, unless another worker has done so.

        The folder's spec may then be another one; compare the hashes.

        Raises ValueError for a folder with foreign files, OSError where nothing can be written.
        """
        folder = Path(path)
        try:
            check_free(folder)
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / SPEC).exists():
                if conditions is not None:
                    name = conditions_name(spec.conditions)
                    assert name is not None
                    _publish(folder, name, conditions)
                text = json.dumps(spec.to_json(), indent=1) + "\n"
                _publish(folder, SPEC, text.encode())
        except OSError as error:
            raise OSError(cannot_write(folder, error)) from None
        return cls(folder)

    @property
    def conditions(self) -> Path | None:
        """The conditions file of the run, None without one."""
        name = conditions_name(self.spec.conditions)
        return None if name is None else self.path / name

    # -- units

    def record_path(self, unit: int) -> Path:
        return self.path / record_name(unit)

    def failed_path(self, unit: int) -> Path:
        return self.path / "failed" / f"{unit:09d}.json"

    def done(self) -> set[int]:
        """Returns the units of the run that have a record."""
        numbers = self.spec.units.numbers
        return {unit for unit in unit_numbers(self.path) if unit in numbers}

    def failed(self) -> dict[int, dict[str, Any]]:
        """Returns the failed units that no worker has made since, with the content of their files.

        A file names the first sample that was not finite, the step and sigma.
        """
        found = {}
        for entry in _scan(self.path / "failed"):
            unit = failed_unit(entry.name)
            if unit is None:
                continue
            try:
                content = parse_json(read_bytes(entry.path))
            except FileNotFoundError:
                continue  # another worker is retrying it
            except (OSError, ValueError):
                content = None
            if not self.record_path(unit).exists():
                found[unit] = (
                    content
                    if isinstance(content, dict)
                    else {"what": f"{entry.path} is not as it was written"}
                )
        return found

    def finished(self, unit: int) -> bool:
        """Returns whether a unit needs no more work: it is done, or has failed."""
        return self.record_path(unit).exists() or self.failed_path(unit).exists()

    def commit(
        self, unit: int, files: Iterable[tuple[str, Content]], record: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Writes a unit's files, then its record, and returns the record.

        files: (name, content) of each.

        Raises OSError in one sentence.
        """
        try:
            listed, names = [], []
            for name, content in files:
                pieces = [content] if isinstance(content, bytes) else content
                self._put(self.path / name, partial(_write_pieces, pieces))
                names.append(name)
                digest = hashlib.sha256()
                for piece in pieces:
                    digest.update(piece)
                listed.append(
                    {
                        "name": name,
                        "bytes": sum(map(len, pieces)),
                        "sha256": digest.hexdigest(),
                    }
                )
            for parent in {(self.path / name).parent for name in names}:
                sync_folder(parent)
            complete = with_checksum({**record, "files": listed})
            path = self.record_path(unit)
            self._put(path, (json.dumps(complete) + "\n").encode())
            sync_folder(path.parent)
        except OSError as error:
            raise OSError(cannot_write(self.path, error, f"unit {unit} is not written")) from None
        return complete

    def fail(self, unit: int, what: Mapping[str, Any]) -> None:
        """Records that a unit failed. what: content of its file."""
        path = self.failed_path(unit)
        try:
            self._put(path, (json.dumps(dict(what)) + "\n").encode())
            sync_folder(path.parent)
        except OSError as error:
            raise OSError(cannot_write(self.path, error)) from None

    def forget(self, unit: int) -> None:
        """Removes a unit's record, so that the unit is made again and its files are overwritten."""
        try:
            for path in (self.record_path(unit), self.failed_path(unit)):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise OSError(cannot_write(self.path, error)) from None

    def remove(self, name: str) -> None:
        """Removes a file of the dataset itself, if it is there."""
        try:
            (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise OSError(cannot_write(self.path, error)) from None

    def write(self, name: str, content: bytes | Callable[[BinaryIO], Any]) -> None:
        """Writes a file of the dataset itself, completely or not at all.

        Raises OSError in one sentence.
        """
        try:
            self._put(self.path / name, content)
            sync_folder((self.path / name).parent)
        except OSError as error:
            raise OSError(cannot_write(self.path, error, f"{name} is not written")) from None
        finally:
            self.leave()

    def _put(self, path: Path, content: bytes | Callable[[BinaryIO], Any]) -> None:
        """Writes `path` under another name, flushes it and renames it.

        content: bytes, or a function that writes them to a file.
        """
        self._folder(path.parent)
        temporary = self._temporary / f"{uuid.uuid4().hex}.tmp"
        for attempt in range(3):
            self._folder(self._temporary)
            try:
                with open(temporary, "xb") as file:
                    if isinstance(content, bytes):
                        file.write(content)
                    else:
                        content(file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
                return
            except FileNotFoundError:  # another worker swept this one's folder by mistake
                self._made.discard(self._temporary)
                if attempt == 2:
                    raise
            except OSError:
                temporary.unlink(missing_ok=True)
                raise

    def _folder(self, path: Path) -> None:
        if path in self._made:
            return
        for parent in [p for p in (path.parent, path) if not p.exists()]:
            parent.mkdir(parents=True, exist_ok=True)
            sync_folder(parent.parent)
        self._made.add(path)

    # -- leftovers

    def sweep(self) -> int:
        """Removes the unfinished files of dead workers and returns the number of these workers.

        A worker of this host is dead if its process does not run, one of another host if it has
        written nothing for a day. A live worker that is swept by mistake (in another container with
        the same host name, for example) writes its file again.
        """
        host, swept = socket.gethostname(), 0
        if (self.path / "tmp").is_symlink():  # it would lead the removal out of the dataset
            return 0
        for entry in _scan(self.path / "tmp"):
            owner, pid, _ = (entry.name.rsplit("-", 2) + ["", ""])[:3]
            if entry.name == self.worker or not pid.isdecimal():
                continue
            if owner == host:
                dead = not _alive(int(pid))
            else:
                dead = time.time() - entry.stat().st_mtime > DAY
            if dead:
                shutil.rmtree(entry.path, ignore_errors=True)
                swept += 1
        return swept

    def leave(self) -> None:
        """Removes this worker's own folder of unfinished files."""
        self._made.discard(self._temporary)
        shutil.rmtree(self._temporary, ignore_errors=True)


def check_free(folder: Path) -> None:
    """Raises ValueError unless a folder is new, empty or a run's."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"fastdiff.jobs: expected {folder} to be a folder, got a file. Name another path."
        )
    if not folder.exists() or (folder / SPEC).exists():
        return
    foreign = sorted(e.name for e in os.scandir(folder) if not _before_spec(e.name))
    if foreign and not (folder / SPEC).exists():
        raise ValueError(
            f"fastdiff.jobs: expected {folder} to be new, empty or a run's, got {foreign[0]!r} and"
            f" no {SPEC} in it. Name another folder."
        )


def conditions_name(conditions: Mapping[str, Any]) -> str | None:
    """Returns the name of a conditions file in a dataset's folder, which depends on its content."""
    if "pictures" in conditions:
        return f"conditions-{conditions['pictures'][:16]}.npy"
    return f"conditions-{conditions['file'][:16]}.txt" if "file" in conditions else None


def _write_pieces(pieces: Sequence[bytes | memoryview], file: BinaryIO) -> None:
    file.writelines(pieces)


def _scan(path: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return


def _worker() -> str:
    """Returns a name that identifies this process among all workers of a run."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _before_spec(name: str) -> bool:
    """Returns whether a name may be in a folder before its spec.

    Those are the files of a worker that is about to write the spec, and the system's own.
    """
    return name in ("tmp", "lost+found") or name.startswith(("conditions-", ".nfs"))


def _publish(folder: Path, name: str, content: bytes | Path) -> None:
    """Writes a file, or copies one, unless it exists.

    The first of several workers wins, and no process sees a partial file.
    """
    own = folder / "tmp" / _worker()
    temporary = own / f"{name}.tmp"
    try:
        own.mkdir(parents=True)
        with open(temporary, "xb") as file:
            if isinstance(content, Path):
                with open(content, "rb") as source:
                    shutil.copyfileobj(source, file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, folder / name)
        except FileExistsError:
            return
        # without hard links, the last of simultaneous writers wins, and then all read the same file
        except OSError:
            if not (folder / name).exists():
                os.replace(temporary, folder / name)
        sync_folder(folder)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # a zombie: killed, but its parent has not waited for it
        state = (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="ascii", errors="replace")
            .rpartition(")")[2]
            .split()[0]
        )
    except (OSError, IndexError):
        return True
    return state not in "ZX"


def cannot_write(folder: Path, error: OSError, what: str = "") -> str:
    """Returns one sentence about a full disk, a read-only folder and similar errors."""
    reason = error.strerror or _first_line(error)
    if isinstance(error, IsADirectoryError):
        there = error.filename2 or error.filename
        return (
            f"fastdiff.jobs: expected to write a file in {folder}, got a folder of its name"
            f"{f', {there}' if there else ''}{f'; {what}' if what else ''}. Finished units are"
            " intact; move that folder away, then run `fastdiff resume`."
        )
    return (
        f"fastdiff.jobs: expected to write into {folder}, got"
        f" {reason!r}{f'; {what}' if what else ''}. Finished units are intact; free disk space or"
        " permit writing, then run `fastdiff resume`."
    )


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
