"""Writes noise_v1.json: normals of noise contract 1 as float32 bits, from the NumPy oracle.

Run it only to add cases: a changed value of an existing case needs a new version of the contract.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fastdiff.reference import randn

CASES = [
    {"seed": seed, "sample_id": sample_id, "step": step, "stream": stream, "elements": n}
    for seed, sample_id, step, stream, n in [
        (0, 0, 0, 0, 9),
        (1, 0, 0, 0, 8),
        (0, 1, 0, 0, 7),
        (0, 0, 1, 0, 6),
        (0, 0, 0, 1, 5),
        (42, 7, 3, 2, 13),
        (2**32 - 1, 2**32 - 1, 2**32 - 1, 3, 4),
        (2**32, 2**32, 2**31, 4, 3),
        (2**63, 2**40 + 17, 999, 5, 2),
        (2**64 - 1, 2**56 - 1, 2**32 - 1, 5, 11),
        (0x9E3779B97F4A7C15, 2**55 + 123456789, 12345, 1, 1),
        (2**63 + 12345, 2**33 + 5, 50, 1, 70),
    ]
]


def bits(case: dict) -> list[str]:
    values = randn(
        (1, case["elements"]),
        seed=case["seed"],
        sample_ids=[case["sample_id"]],
        step=case["step"],
        stream=case["stream"],
    )
    return [f"{b:08x}" for b in values.view(np.uint32)[0]]


if __name__ == "__main__":
    cases = [{**case, "bits": " ".join(bits(case))} for case in CASES]
    target = Path(__file__).with_name("noise_v1.json")
    target.write_text(json.dumps({"contract_version": 1, "cases": cases}, indent=1) + "\n")
