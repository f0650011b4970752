"""The stages of scripts/gpu_first_run.sh, for a GPU that is at hand for minutes.

stages.py        the table: names, seconds, commands, and the tests that each suite selects
versions.py      stage a: versions, tools, doctor, and a launch on every backend
suites.py        stages b, c and d: runs tests and records each
lost_device.py   a pytest plugin: a process whose GPU is lost ends, and another goes on
calls.py         a call of every op, for the tools of the stages f and g
profiled.py      stage f: three kernels in Nsight Compute
sanitized.py     stage g: every op in compute-sanitizer

Stage e is the piece `first` of benchmarks.gpu.
"""
