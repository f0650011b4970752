"""A dataset's folder: what is in it, and how a unit gets into it whole or not at all.

    spec.json                    the run spec, written first
    conditions-<hash>.txt        what each sample is of, where a file said so
    shards/00012/000012345.npy   the samples of unit 12345 (other formats: fastdiff.jobs.formats)
    units/00012/000012345.json   its record: ids, labels, hashes, timing. Written last: with it the unit is done
    failed/000012345.json        a unit that gave no finite samples, twice
    log/, tmp/                   a file of events and a folder of half-written files per worker
    manifest.jsonl, grid.png     made from the records when all are there

Files are written under tmp/, flushed to disk, renamed and their folder flushed, so that a name
never stands for half a file. Two workers that make the same unit write the same bytes over each
other.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..pretrained.files import sync_folder
from .records import record_name, sealed, unit_numbers
from .spec import RunSpec

SPEC = "spec.json"
DAY = 86_400


class Folder:
    """A dataset's folder. Raises FileNotFoundError or ValueError where there is none.

    Attributes: path, spec; worker: the name of this process in it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        where = self.path / SPEC
        try:
            value = json.loads(where.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"fastdiff.jobs: expected a dataset in {self.path}, got no {SPEC} there. Name the"
                " folder of a run."
            ) from None
        except (ValueError, OSError) as error:
            raise ValueError(
                f"fastdiff.jobs: expected JSON in {where}, got {_first_line(error)}."
            ) from None
        if not isinstance(value, dict):
            raise ValueError(
                f"fastdiff.jobs: expected a run spec in {where}, got {type(value).__name__}."
            )
        self.spec = RunSpec.from_json(value, str(where))
        self.worker = _worker()
        self._temporary = self.path / "tmp" / self.worker
        self._made: set[Path] = set()

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], spec: RunSpec, conditions: Path | None = None
    ) -> Folder:
        """Writes the spec into a new or empty folder; where another worker was faster, its spec
        stands.

        Raises ValueError for a folder with foreign files, OSError where nothing can be written.
        """
        folder = Path(path)
        if folder.exists() and not folder.is_dir():
            raise ValueError(
                f"fastdiff.jobs: expected {folder} to be a folder, got a file. Name another place."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / SPEC).exists():
                foreign = sorted(e.name for e in os.scandir(folder) if not _before_spec(e.name))
                if foreign and not (folder / SPEC).exists():
                    raise ValueError(
                        f"fastdiff.jobs: expected {folder} to be new, empty or a run's, got"
                        f" {foreign[0]!r} and no {SPEC} in it. Name another folder."
                    )
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
        """The file that says what each sample is of, if one does."""
        name = conditions_name(self.spec.conditions)
        return None if name is None else self.path / name

    # -- units
    # --------------------------------------------------------------------------------------------------------

    def record_path(self, unit: int) -> Path:
        return self.path / record_name(unit)

    def failed_path(self, unit: int) -> Path:
        return self.path / "failed" / f"{unit:09d}.json"

    def done(self) -> set[int]:
        """The units of the run whose records are there."""
        numbers = self.spec.units.numbers
        return {unit for unit in unit_numbers(self.path) if unit in numbers}

    def failed(self) -> dict[int, dict[str, Any]]:
        """The units that were given up and that nobody has made since, with where they were not
        finite.
        """
        found = {}
        for entry in _scan(self.path / "failed"):
            if not entry.name.endswith(".json") or not entry.name[:-5].isdecimal():
                continue
            unit = int(entry.name[:-5])
            try:
                what = json.loads(Path(entry.path).read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue  # being retried elsewhere
            except (OSError, ValueError):
                what = None
            if not self.record_path(unit).exists():
                found[unit] = (
                    what
                    if isinstance(what, dict)
                    else {"what": f"{entry.path} is not as it was written"}
                )
        return found

    def finished(self, unit: int) -> bool:
        """Whether nobody needs to compute it any more: done, or failed for good."""
        return self.record_path(unit).exists() or self.failed_path(unit).exists()

    def commit(
        self, unit: int, files: Iterable[tuple[str, bytes]], record: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Writes a unit's files, then its record, and returns that. Raises OSError in one
        sentence.
        """
        try:
            listed, names = [], []
            for name, content in files:
                self._put(self.path / name, content)
                names.append(name)
                listed.append(
                    {
                        "name": name,
                        "bytes": len(content),
                        "sha256": hashlib.sha256(content).hexdigest(),
                    }
                )
            for parent in {(self.path / name).parent for name in names}:
                sync_folder(parent)
            complete = sealed({**record, "files": listed})
            path = self.record_path(unit)
            self._put(path, (json.dumps(complete) + "\n").encode())
            sync_folder(path.parent)
        except OSError as error:
            raise OSError(cannot_write(self.path, error, f"unit {unit} is not written")) from None
        return complete

    def fail(self, unit: int, what: Mapping[str, Any]) -> None:
        """Writes down that a unit failed."""
        path = self.failed_path(unit)
        try:
            self._put(path, (json.dumps(dict(what)) + "\n").encode())
            sync_folder(path.parent)
        except OSError as error:
            raise OSError(cannot_write(self.path, error)) from None

    def forget(self, unit: int) -> None:
        """Takes a unit's record away, so that it is made again; its files are written over then."""
        try:
            for path in (self.record_path(unit), self.failed_path(unit)):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise OSError(cannot_write(self.path, error)) from None

    def write(self, name: str, content: bytes | Callable[[BinaryIO], Any]) -> None:
        """A file of the dataset itself, whole or not at all. Raises OSError in one sentence."""
        try:
            self._put(self.path / name, content)
            sync_folder((self.path / name).parent)
        except OSError as error:
            raise OSError(cannot_write(self.path, error, f"{name} is not written")) from None
        finally:
            self.leave()

    def _put(self, path: Path, content: bytes | Callable[[BinaryIO], Any]) -> None:
        """Writes `path` under another name, flushes it and renames it. content: bytes, or what
        writes them to a file.
        """
        self._folder(path.parent)
        temporary = self._temporary / f"{uuid.uuid4().hex}.tmp"
        for attempt in range(3):
            self._folder(self._temporary)
            try:
                with open(temporary, "wb") as file:
                    if isinstance(content, bytes):
                        file.write(content)
                    else:
                        content(file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
                return
            except FileNotFoundError:  # somebody took this worker for dead and swept its folder
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
    # ----------------------------------------------------------------------------------------------------

    def sweep(self) -> int:
        """Removes half-written files of workers that are no more; returns how many workers left
        some.

        Dead are processes of this host that do not run, and those of other hosts that wrote nothing
        for a day. A live worker swept by mistake (of another container with the same name, say)
        writes its file again.
        """
        host, swept = socket.gethostname(), 0
        for entry in _scan(self.path / "tmp"):
            theirs, pid, _ = (entry.name.rsplit("-", 2) + ["", ""])[:3]
            if entry.name == self.worker or not pid.isdecimal():
                continue
            if theirs == host:
                dead = not _alive(int(pid))
            else:
                dead = time.time() - entry.stat().st_mtime > DAY
            if dead:
                shutil.rmtree(entry.path, ignore_errors=True)
                swept += 1
        return swept

    def leave(self) -> None:
        """Removes this worker's own folder of half-written files."""
        self._made.discard(self._temporary)
        shutil.rmtree(self._temporary, ignore_errors=True)


def conditions_name(conditions: Mapping[str, Any]) -> str | None:
    """The name of a conditions file in a dataset's folder, by its content."""
    return f"conditions-{conditions['file'][:16]}.txt" if "file" in conditions else None


def _scan(path: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return


def _worker() -> str:
    """A name for this process among all that work on a run."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _before_spec(name: str) -> bool:
    """Names that may be in a folder before its spec: of another worker that is about to write it,
    or the system's.
    """
    return name in ("tmp", "lost+found") or name.startswith(("conditions-", ".nfs"))


def _publish(folder: Path, name: str, content: bytes | Path) -> None:
    """Writes a file, or copies one, unless it is there: the first of several workers wins, and
    nobody sees half of it.
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
        # a file system without links: the last of simultaneous writers wins, then all read the same
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
    try:  # a process that was killed and not yet waited for
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
    """One sentence about a disk that is full, a folder that is read-only and their like."""
    reason = error.strerror or _first_line(error)
    return (
        f"fastdiff.jobs: expected to write into {folder}, got"
        f" {reason!r}{f'; {what}' if what else ''}. What is there is whole; make room or give"
        " leave, then `fastdiff resume`."
    )


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
