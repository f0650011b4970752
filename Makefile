# Everything starts here. Each target does the set-up it needs; a second run repeats none.
#   make demo | test | bench | report | gpu-test | gpu-report | lint | doctor | setup | clean
#   VENV=1             an own environment (.venv) even where python3 has torch
#   PYTHON=<path>      the interpreter to start from
#   TORCH="<pip arguments>"   which torch an own environment gets (set-up says when that matters)
# GNU make 3.81, a POSIX shell and Python are enough.

SHELL = /bin/sh

# Style and type checkers may be missing from a borrowed interpreter (a GPU box): said, and skipped.
check = sh scripts/run -c 'import $(1)' 2>/dev/null || { echo 'make lint: $(1) is not installed in the interpreter in use, skipped (make VENV=1 lint has it).'; exit 0; }; sh scripts/run -m $(1) $(2)

# tests on up to four cores where pytest-xdist is there (a GPU box may lack it)
cores = `sh scripts/run -c 'import xdist' 2>/dev/null && printf '%s' '-n auto --maxprocesses 4 --dist loadgroup'`

.PHONY: demo test bench report gpu-test gpu-report lint doctor setup setup-test clean

demo: setup
	@sh scripts/run -m fastdiff sample --out out/demo --num 256 --steps 25 --seed 0

test: lint
	@sh scripts/run -m pytest --durations=10 $(call cores) tests

bench: setup-test
	@sh scripts/run -m pytest benchmarks --benchmark-only

# pages of docs/performance/ from the results in benchmarks/results/
report: setup-test
	@sh scripts/run -m benchmarks.report

# builds the CUDA library and tests on the GPU; gpu-test.json says what ran and what was skipped
gpu-test: setup-test
	@sh scripts/run scripts/gpu_test.py --out gpu-test.json

# measures on the GPU, in pieces under 9 minutes; again goes on where it stopped. WHEELS=<folder> holds peers not installed
gpu-report: setup-test
	@sh scripts/run scripts/gpu_report.py $(if $(WHEELS),--wheels '$(WHEELS)')

lint: setup-test
	@$(call check,ruff,check .)
	@$(call check,mypy,)

doctor: setup
	@sh scripts/run -m fastdiff doctor

setup:
	@sh scripts/setup.sh run

setup-test:
	@sh scripts/setup.sh test

# what set-up and builds made; results in out/ stay
clean:
	rm -rf .venv .setup build dist fastdiff/lib fastdiff_engine.egg-info .mypy_cache .pytest_cache .ruff_cache
