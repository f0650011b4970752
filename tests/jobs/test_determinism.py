"""The environment of a process changes no byte of a dataset, or is refused by name.

Changes of NumPy's instructions, hash seeds, locale, time zone and umask must not change a byte.
Changes of the network's instructions are refused.
"""

from __future__ import annotations

import hashlib
import json
import locale
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__  # type: ignore[attr-defined]
from patience import PATIENCE
from test_engines import HERE, ROOT

from fastdiff.cli import main
from fastdiff.cli.exit_status import MISMATCH
from fastdiff.jobs.folder import Folder
from fastdiff.jobs.formats import FORMATS
from fastdiff.jobs.verify import verify

pytestmark = [pytest.mark.cpu_only, pytest.mark.xdist_group("jobs")]

TINY = (
    "--model",
    "tiny:factory",
    "--ids",
    "3-30",
    "--unit",
    "8",
    "--steps",
    "3",
    "--device",
    "cpu",
    "--threads",
    "1",
)
# watched:factory is the shipped network, which refuses to compute with other than two threads
RUNS: dict[str, tuple[str, ...]] = {
    **{name: (*TINY, "--format", name) for name in FORMATS},
    "shipped": (
        "--model",
        "watched:factory",
        "--ids",
        "3-6",
        "--unit",
        "2",
        "--steps",
        "1",
        "--threads",
        "2",
        "--dtype",
        "fp32",
        "--device",
        "cpu",
    ),
}
# resumes each folder, then prints its environment: the last line is JSON
PROGRAM = """
import hashlib, json, locale, os, sys, time
locale.setlocale(locale.LC_ALL, "")
from fastdiff.cli import main
status = [main(["resume", folder, "--trust"]) for folder in sys.argv[1:]]
import numpy as np
import torch
os.umask(umask := os.umask(0))
exp = np.exp(np.linspace(-9, 9, 4001, dtype=np.float32))
digest = hashlib.sha256(exp.tobytes()).hexdigest()
print(json.dumps({"status": status, "exp": digest, "hash": hash("fastdiff"),
                  "umask": umask, "zone": time.tzname[0], "locale": locale.setlocale(locale.LC_ALL),
                  "where": os.getcwd()}))
"""
# instruction sets that NumPy has code for and this CPU supports
LEVELS = [level for level in __cpu_dispatch__ if __cpu_features__.get(level)]


def turkish() -> str:
    """Returns a locale with another decimal point and other case rules, if the system has one."""
    before = locale.setlocale(locale.LC_ALL)
    for name in ("tr_TR.UTF-8", "de_DE.UTF-8", "C.UTF-8"):
        try:
            locale.setlocale(locale.LC_ALL, name)
        except locale.Error:
            continue
        locale.setlocale(locale.LC_ALL, before)
        return name
    return "C"


ENVIRONMENTS: dict[str, dict[str, str]] = {
    "numpy's lowest level, one thread, C": {
        "NPY_DISABLE_CPU_FEATURES": " ".join(LEVELS),
        "OMP_NUM_THREADS": "1",
        "LC_ALL": "C",
        "PYTHONHASHSEED": "0",
        "TZ": "Asia/Kathmandu",
    },
    "numpy without AVX-512, three threads, another language": {
        "NPY_DISABLE_CPU_FEATURES": "X86_V4",
        "OMP_NUM_THREADS": "3",
        "LC_ALL": turkish(),
        "PYTHONHASHSEED": "4321",
        "TZ": "America/St_Johns",
    },
}


def begun(undisturbed: Path, where: Path) -> list[Path]:
    """Makes folders of the same runs that hold only the specs."""
    folders = [where / name for name in RUNS]
    for folder in folders:
        folder.mkdir(parents=True)
        shutil.copy(undisturbed / folder.name / "spec.json", folder)
    return folders


def resume_in_process(
    folders: list[Path], environment: dict[str, str], umask: int = -1
) -> tuple[dict[str, Any], str]:
    """Resumes the runs in another process; returns (its environment and result, its stderr)."""
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels", HERE)))}
    cleaned = {
        k: v
        for k, v in os.environ.items()
        if k not in ("OMP_NUM_THREADS", "LANG") and not k.startswith("LC_")
    }
    place = folders[0].parent / "another place"
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, folders)],
        env=cleaned | paths | environment,
        umask=umask,
        cwd=place,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def data_files(folder: Path) -> list[Path]:
    """Returns the files of the samples, in any format."""
    owns = FORMATS[Folder(folder).spec.format].owns
    tops = [p for p in folder.iterdir() if p.name == "shards" or owns(p.name)]
    return sorted(p for top in tops for p in top.rglob("*") if p.is_file())


def content(folder: Path) -> dict[str, str]:
    """Returns the hashes of the data files and of the manifest."""
    files = [*data_files(folder), folder / "manifest.jsonl"]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs, made by this process."""
    place = tmp_path_factory.mktemp("undisturbed")
    sys.path.insert(0, str(HERE))
    try:
        for name, arguments in RUNS.items():
            assert main(["sample", "--out", str(place / name), *arguments]) == 0
    finally:
        sys.path.remove(str(HERE))
    return place


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_environment_of_a_process_changes_no_byte(
    name: str, undisturbed: Path, tmp_path: Path
) -> None:
    folders = begun(undisturbed, tmp_path)
    found, said = resume_in_process(folders, ENVIRONMENTS[name], umask=0o077)
    assert found["status"] == [0] * len(RUNS), said
    # the environment was different indeed
    assert (
        found["umask"] == 0o077
        and found["where"].endswith("another place")
        and found["zone"] != "UTC"
    )
    assert found["hash"] != hash("fastdiff")
    here = hashlib.sha256(np.exp(np.linspace(-9, 9, 4001, dtype=np.float32)).tobytes()).hexdigest()
    if "X86_V3" in LEVELS and "X86_V3" in ENVIRONMENTS[name]["NPY_DISABLE_CPU_FEATURES"]:
        assert found["exp"] != here, "NumPy computed exp with the same instructions"
    for folder in folders:
        there, check = Folder(undisturbed / folder.name), verify(Folder(folder))
        assert check.fine and check.digest == verify(there).digest, folder.name
        assert content(folder) == content(there.path), folder.name
        assert {p.stat().st_mode & 0o777 for p in data_files(folder)} == {0o600}


def test_other_instructions_of_the_network_are_refused(undisturbed: Path, tmp_path: Path) -> None:
    """oneDNN is restricted to older instructions, with which the network's sums are different."""
    lower = "SSE41" if torch.backends.cpu.get_cpu_capability() in ("AVX2", "DEFAULT") else "AVX2"
    folders = begun(undisturbed, tmp_path)
    found, said = resume_in_process(folders, {"ONEDNN_MAX_CPU_ISA": lower})
    assert found["status"] == [MISMATCH] * len(RUNS)
    line = rf"  machine\.settings\.ONEDNN_MAX_CPU_ISA: nothing there, '{lower}' here\n"
    assert len(re.findall(rf"got another in a setting\.\n{line}", said)) == len(RUNS), said
    assert not any(
        (folder / name).exists() for folder in folders for name in ("units", "shards", "log")
    ), "nothing is made"


def test_a_run_of_other_instructions_is_refused_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reverse case, and torch's own choice of instructions."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert main(["sample", "--out", str(tmp_path / "run"), *TINY]) == 0
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NONE SUCH")
    assert main(["verify", "--trust", "--recompute", "1", str(tmp_path / "run")]) == MISMATCH
    assert main(["resume", str(tmp_path / "run"), "--trust"]) == MISMATCH
    err = capsys.readouterr().err
    assert err.count("machine.settings.ONEDNN_MAX_CPU_ISA: 'AVX2' there, nothing here") == 2
    assert err.count("there, 'NONE SUCH' here") == 2 and "got another in 2 settings" in err
