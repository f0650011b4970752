"""Full and read-only disks: each is named in a sentence, and no finished unit is lost."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from damaged_runs import RECORD, RUN, Cli, pixels, state

from fastdiff.jobs import Folder
from fastdiff.jobs.verify import verify


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """disk(options) mounts a file system in memory, or changes its options."""
    place = tmp_path / "disk"

    def mount(options: str) -> Path:
        if not place.exists():
            place.mkdir()
            mounted = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place],
                capture_output=True,
                text=True,
            )
            if mounted.returncode:
                place.rmdir()
                pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
        else:
            subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)
        return place

    yield mount
    if place.exists():
        subprocess.run(["umount", "-l", place], check=True)


FULL = re.compile(
    r"fastdiff (sample|resume): fastdiff\.jobs: expected to write into \S+, got '(No space left on"
    r" device|File too large)'"
    r"(; (unit \d+|manifest\.jsonl|grid\.png) is not written)?\. Finished units are intact; free"
    r" disk space or permit writing, then run "
    r"`fastdiff resume`\.\n"
)


def without_progress(err: str) -> str:
    """Returns stderr without the progress line."""
    return "".join(
        line for line in err.splitlines(keepends=True) if not line.startswith(("\r", "sampling"))
    ).lstrip("\n")


def test_a_full_disk(disk: Callable[[str], Path], undisturbed: Path, cli: Cli) -> None:
    """The disk is full after any page: finished units are intact, and more space lets it resume."""
    expected, interrupted = cli.digest(undisturbed), 0
    for pages in range(2, 60, 3):
        place = disk(f"size={4 * pages}k")
        status = cli("sample", "--out", place / "run", *RUN)
        if status == 0:
            break
        assert status == 1 and FULL.fullmatch(without_progress(cli.err)), cli.err
        if (place / "run/spec.json").exists():
            interrupted += 1
            before = state(place / "run")
            check = verify(Folder(place / "run"))
            assert not check.bad and check.done == len(before) - len(pixels(place / "run"))
            assert cli("resume", place / "run") == 1 and FULL.fullmatch(
                without_progress(cli.err)
            ), cli.err
            assert {name: value[0] for name, value in before.items()}.items() <= dict(
                (name, value[0]) for name, value in state(place / "run").items()
            ).items()
        disk("size=1m")
        assert cli("sample", "--out", place / "run", *RUN) == 0, cli.err
        assert cli.digest(place / "run") == expected and pixels(place / "run") == pixels(
            undisturbed
        )
        shutil.rmtree(place / "run")
    else:
        raise AssertionError("no size was enough")
    assert interrupted >= 5


def test_files_that_may_not_grow(tmp_path: Path, undisturbed: Path, cli: Cli) -> None:
    """The same without mounting: a limit on the file size, so that no record can be written."""
    job = tmp_path / "run"
    assert cli("sample", "--out", job, *RUN) == 0
    shutil.rmtree(job / "units")
    before, limits = pixels(job), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, limits[1]))
    try:
        assert cli("resume", job) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert FULL.fullmatch(without_progress(cli.err)) and "'File too large'; unit " in cli.err
    assert (
        pixels(job) == before
        and not list((job / "tmp").iterdir())
        and not list((job / "units").rglob("*.json"))
    )
    assert cli("resume", job) == 0 and cli.digest(job) == cli.digest(undisturbed)


@pytest.fixture
def locked(
    disk: Callable[[str], Path], undisturbed: Path, tmp_path: Path
) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Returns (a read-only dataset without unit 3, a function that makes it writable)."""
    if os.geteuid() == 0:
        run = shutil.copytree(undisturbed, disk("size=4m") / "run")
        (run / RECORD).unlink()
        disk("ro")
        yield run, lambda: disk("rw") and None
        return
    run = shutil.copytree(undisturbed, tmp_path / "run")
    (run / RECORD).unlink()
    subprocess.run(["chmod", "-R", "a-w", run], check=True)
    yield run, lambda: subprocess.run(["chmod", "-R", "u+w", run], check=True) and None
    subprocess.run(["chmod", "-R", "u+w", run], check=True)


def test_a_read_only_folder(
    locked: tuple[Path, Callable[[], None]], undisturbed: Path, cli: Cli
) -> None:
    run, unlock = locked
    expected, before = cli.digest(undisturbed), state(run)
    assert cli("info", run) == 0 and "1 missing" in cli.out
    assert cli("verify", run) == 4 and "1 of 6 units have no record: 3" in cli.out
    sentence = re.compile(
        r"fastdiff (sample|resume): fastdiff\.jobs: expected to write into \S+, "
        r"got '(Read-only file system|Permission denied)'\. "
        r"Finished units are intact; free disk space or permit writing, then run "
        r"`fastdiff resume`\.\n"
    )
    for command in (
        ("resume", run),
        ("sample", "--out", run),
        ("resume", run, "--verify", "--retry-failed"),
    ):
        assert cli(*command) == 1 and sentence.fullmatch(cli.err), cli.err
    assert (
        cli("sample", "--out", run.parent / "new" if os.geteuid() == 0 else run / "new", *RUN) == 1
    )
    assert sentence.fullmatch(cli.err), cli.err
    assert state(run) == before
    unlock()
    assert cli("resume", run) == 0 and cli.digest(run) == expected
