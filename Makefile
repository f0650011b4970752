# Each target does the set-up that it needs; a second run repeats none of it.
#   make demo | test | test-quick | fuzz | bench | report | gpu-compile | gpu-test | gpu-report | lint | doctor | setup | clean
#   VENV=1             creates an environment (.venv) even if python3 has torch
#   PYTHON=<path>      the interpreter to start from
#   TORCH="<pip arguments>"   the torch to install in .venv (set-up says when that matters)
# They need GNU make 3.81, a POSIX shell and Python.

SHELL = /bin/sh

# An interpreter that set-up did not create may lack ruff or mypy; make lint then says so and skips it.
check = sh scripts/run -c 'import $(1)' 2>/dev/null || { echo 'make lint: $(1) is not installed in the interpreter in use, skipped (make VENV=1 lint has it).'; exit 0; }; sh scripts/run -m $(1) $(2)

# tests run on up to four cores if pytest-xdist is installed
cores = `sh scripts/run -c 'import xdist' 2>/dev/null && printf '%s' '-n auto --maxprocesses 4 --dist loadgroup'`

.PHONY: demo test test-quick fuzz bench report gpu-compile gpu-test gpu-report lint doctor setup setup-test clean

demo: setup
	@sh scripts/run -m fastdiff sample --out out/demo --num 256 --steps 25 --seed 0

test: lint
	@sh scripts/run -m pytest --durations=10 $(call cores) tests

# while editing: the first case of each test for 80 seconds, those near the changed files first
test-quick: setup-test
	@sh scripts/run -m pytest -q --seconds $(or $(SECONDS),80) $(call cores) tests

# drawn calls, samplers, model folders and damaged datasets: 20 minutes on 2 cores. SEED=<n> (0) draws others; JOBS=<n>
# processes (2); MINUTES=<n> stops earlier; CAMPAIGNS="ops samplers" runs some of them
fuzz: setup-test
	@sh scripts/run tests/fuzz/campaign.py $(CAMPAIGNS) --seed $(or $(SEED),0) --jobs $(or $(JOBS),2) $(if $(MINUTES),--minutes $(MINUTES))

bench: setup-test
	@sh scripts/run -m pytest benchmarks --benchmark-only

# pages of docs/performance/ and docs/choosing.md from the results in benchmarks/results/
report: setup-test
	@sh scripts/run -m benchmarks.report

# compiles every variant of the Triton kernels that the op tests launch, for sm_80, sm_90 and sm_100, without a GPU. A second
# call continues. JOBS=<n> processes (default: the cores)
gpu-compile: setup-test
	@sh scripts/run tests/backend/gpu_compile.py $(if $(JOBS),--jobs $(JOBS))

# tests and measures on the GPU, with results in OUT; on 16 cores in 10 minutes
gpu-test: setup-test
	@sh scripts/gpu_first_run.sh --out '$(or $(OUT),out/gpu-test)' --minutes 60 --patience 4 $(if $(WHEELS),--wheels '$(WHEELS)')

# measures on the GPU, in pieces under 9 minutes; a second call continues. WHEELS=<folder> has wheels of peers to install
gpu-report: setup-test
	@sh scripts/run scripts/gpu_report.py $(if $(WHEELS),--wheels '$(WHEELS)')

lint: setup-test
	@$(call check,ruff,check .)
	@$(call check,ruff,format --check .)
	@$(call check,mypy,)

doctor: setup
	@sh scripts/run -m fastdiff doctor

setup:
	@sh scripts/setup.sh run

setup-test:
	@sh scripts/setup.sh test

# removes what set-up and builds made, and keeps results in out/
clean:
	rm -rf .venv .setup build dist fastdiff/lib fastdiff_engine.egg-info .mypy_cache .pytest_cache .ruff_cache
