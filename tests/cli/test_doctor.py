"""`fastdiff doctor`: its findings on machines that are described by text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE

from fastdiff.cli import doctor, main

MAPS = """\
7f00-7f01 r-xp 00000000 fe:00 11 /opt/py thon/torch/lib/libgomp.so.1
7f01-7f02 r--p 00001000 fe:00 11 /opt/py thon/torch/lib/libgomp.so.1
7f02-7f03 r-xp 00000000 fe:00 12 /opt/lib/libomptarget.so
7f03-7f04 r-xp 00000000 00:00 0
"""
IOMP = "7f04-7f05 r-xp 00000000 fe:00 13 /opt/intel/libiomp5.so\n"
MOUNTS = (
    "/dev/vda / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\n/dev/vdb /home/local\\040disk xfs rw"
    " 0 0\n"
)


def test_text_and_json_hold_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["usable"] is True
    assert set(findings["backends"]) >= {"triton", "cpu", "torch"}
    assert all(state["reason"] for state in findings["backends"].values())
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == doctor.describe(findings) + "\n"


def test_a_missing_library_is_a_problem(tmp_path: Path) -> None:
    """Sampling works without it, so pip's note is all that said so, and pip hides it."""
    for there in (True, False):
        environment = dict(os.environ)
        environment.pop("FASTDIFF_LIB", None)
        if not there:
            environment["FASTDIFF_LIB"] = str(tmp_path / "none.so")
        command = [sys.executable, "-m", "fastdiff", "doctor", "--json"]
        done = subprocess.run(
            command, env=environment, capture_output=True, check=True, timeout=PATIENCE
        )
        findings = json.loads(done.stdout)
        assert findings["usable"] and findings["backends"]["cpu"]["available"] == there
        said = [p for p in findings["problems"] if p.startswith("the C++ library is off (no ")]
        assert len(said) == (not there)
        assert there or ("none.so" in said[0] and "Install a C++17 compiler" in said[0])


def test_one_openmp_runtime_in_this_process() -> None:
    assert len(doctor.openmp_runtimes()) <= 1


def test_second_openmp_runtime_is_seen() -> None:
    one = doctor.openmp_runtimes(MAPS)
    assert one == ["/opt/py thon/torch/lib/libgomp.so.1"]
    assert doctor.second_openmp(one) is None
    two = doctor.second_openmp(doctor.openmp_runtimes(MAPS + IOMP))
    assert two is not None and two.startswith(
        "2 OpenMP runtimes are loaded (/opt/intel/libiomp5.so, "
    )


def test_text_diff_library_of_the_same_name_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor.foreign_fastdiff() is None
    info = tmp_path / "fastdiff-0.3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fastdiff\nVersion: 0.3.0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = doctor.foreign_fastdiff()
    assert found is not None and "pip uninstall fastdiff" in found and "0.3.0" in found


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/srv/x", "ext4"), ("/home/ada", "nfs4"), ("/home/local disk/x", "xfs"), ("/homes", "ext4")],
)
def test_file_system_of_a_path(path: str, kind: str) -> None:
    assert doctor.filesystem(Path(path), MOUNTS) == kind


def test_triton_cache_on_a_bad_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: "3.6.0")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    assert doctor.triton_cache_problem(str(tmp_path), "/dev/vda / ext4 rw 0 0\n") is None
    network = doctor.triton_cache_problem(str(tmp_path), "server:/ / nfs rw 0 0\n")
    assert network is not None and "network disk (nfs): set TRITON_CACHE_DIR" in network
    unwritable = doctor.triton_cache_problem("/dev/null")
    assert unwritable is not None and "can't be written: set TRITON_CACHE_DIR" in unwritable
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert doctor.triton_cache_problem("/dev/null", "/dev/vda / ext4 rw 0 0\n") is None
