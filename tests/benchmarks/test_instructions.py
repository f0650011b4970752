"""Instructions an element: how paths through machine code are counted, and what follows from it."""

import json
from pathlib import Path

import pytest

from benchmarks import instructions
from benchmarks.gpu import issue_limits, predictions

HEAD = '\t.headerflags\t@"EF_CUDA_SM90"\n'
# set-up of 3, a loop of 6 with a square root whose slow path is a call, a branch of 2, the exit
LOOP = """
        /*0000*/                   S2R R0, SR_TID.X ;              /* 0x0000000000007919 */
                                                                   /* 0x000e220000002100 */
        /*0010*/               @P0 EXIT ;                          /* 0x000000000000094d */
        /*0020*/                   MOV R1, 0x1 ;                   /* 0x0000000000007919 */
        /*0030*/                   MUFU.RSQ R2, R3 ;               /* 0x0000000000007919 */
        /*0040*/              @!P6 BRA 0x80 ;                      /* 0x0000000000007919 */
        /*0050*/                   MOV R4, 0x70 ;                  /* 0x0000000000007919 */
        /*0060*/                   CALL.REL.NOINC 0xe0 ;           /* 0x0000000000007919 */
        /*0070*/                   BRA 0x90 ;                      /* 0x0000000000007919 */
        /*0080*/                   FMUL R5, R2, R3 ;               /* 0x0000000000007919 */
        /*0090*/               @P1 STG.E.128 desc[UR8][R6.64], R4 ;  /* 0x0000000000007919 */
        /*00a0*/               @P0 BRA 0x30 ;                      /* 0x0000000000007919 */
        /*00b0*/               @P2 BRA 0xd0 ;                      /* 0x0000000000007919 */
        /*00c0*/                   STG.E [R2], R3 ;                /* 0x0000000000007919 */
        /*00d0*/                   EXIT ;                          /* 0x0000000000007919 */
        /*00e0*/                   FMUL.FTZ R1, R1, 2 ;            /* 0x0000000000007919 */
        /*00f0*/                   RET.REL.NODEC R4 0x0 ;          /* 0x0000000000007919 */
        /*0100*/                   BRA 0x100;                      /* 0x0000000000007919 */
        /*0110*/                   NOP;                            /* 0x0000000000007919 */
"""
# a branch past a loop of 4 whose jump back has no condition, and that ends by an exit
ENDLESS = """
        /*0000*/               @P3 BRA 0x60 ;                      /* 0x0000000000007919 */
        /*0010*/                   FADD R1, R1, R2 ;               /* 0x0000000000007919 */
        /*0020*/                   FADD R1, R1, R2 ;               /* 0x0000000000007919 */
        /*0030*/               @P0 EXIT ;                          /* 0x0000000000007919 */
        /*0040*/                   BRA 0x10 ;                      /* 0x0000000000007919 */
        /*0050*/                   NOP ;                           /* 0x0000000000007919 */
        /*0060*/                   EXIT ;                          /* 0x0000000000007919 */
"""


def test_paths_through_machine_code() -> None:
    """The loop counts as often as it runs, a slow path not at all, a branch both ways."""
    code = instructions.parsed(HEAD + LOOP)
    assert [line.operation for line in code][:3] == ["S2R", "EXIT", "MOV"] and len(code) == 17
    assert instructions.path_lengths(code, 1) == [3 + 5 + 2, 3 + 5 + 3]
    assert instructions.path_lengths(code, 8) == [3 + 40 + 2, 3 + 40 + 3]
    assert instructions.path_lengths(instructions.parsed(ENDLESS), 8) == [1 + 32]


def test_ceilings_of_the_table() -> None:
    """An H200 issues 33.45e12 instructions of threads a second, and copies 4.3e12 bytes."""
    assert issue_limits.ceiling(100, 12) == pytest.approx(93.4, rel=1e-3)
    for name, entries in issue_limits.table().items():
        for dtype, entry in entries.items():
            limit = issue_limits.ceiling(entry["instructions"][-1], entry["bytes"])
            assert limit == pytest.approx(entry["ceiling"], rel=5e-3), (name, dtype)


def test_predictions_stay_below_the_ceilings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target above what the kernel's instructions allow is an error; so is an unknown kernel."""
    for kernel in predictions.KERNELS:
        for dtype, percent in zip(issue_limits.DTYPES, kernel.percent, strict=True):
            assert percent <= issue_limits.table()[kernel.name][dtype]["ceiling"], kernel.name
            issue_limits.require(kernel.name, dtype, percent)
    with pytest.raises(ValueError, match="discretised NLL, float32: expected a target of at most"):
        issue_limits.require("discretised NLL", "float32", 80)
    with pytest.raises(KeyError):
        issue_limits.require("another kernel", "float32", 1)
    # half as fast, the exact step's prediction follows the table
    content = json.loads(issue_limits.FILE.read_text(encoding="utf-8"))
    slower = content["kernels"]["DDPM step, exact"]["bfloat16"]
    slower["ceiling"] /= 2
    file = tmp_path / "instructions.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    exact = next(k for k in predictions.KERNELS if k.name == "DDPM step, exact")
    before = exact.percent[1]
    monkeypatch.setattr(issue_limits, "FILE", file)
    issue_limits.table.cache_clear()
    try:
        assert exact.percent[1] == pytest.approx(before / 2, abs=1)
    finally:
        issue_limits.table.cache_clear()
