# `make help` lists the targets, from the ## at each of them. Each does the set-up that it needs; a second run repeats none of
# it. They need GNU make 3.81, a POSIX shell and Python.

SHELL = /bin/sh

# An interpreter that set-up did not create may lack ruff or mypy; make lint then says so and skips it.
check = sh scripts/run -c 'import $(1)' 2>/dev/null || { echo 'make lint: $(1) is not installed in the interpreter in use, skipped (make VENV=1 lint has it).'; exit 0; }; sh scripts/run -m $(1) $(2)

# tests run on up to four cores if pytest-xdist is installed
cores = `sh scripts/run -c 'import xdist' 2>/dev/null && printf '%s' '-n auto --maxprocesses 4 --dist loadgroup'`

.PHONY: help demo test test-quick fuzz bench report docs wheel sdist gpu-compile gpu-test gpu-report lint doctor setup setup-test setup-docs clean

help: ## this list
	@awk -F ': .*## ' '/^[a-z-]+:.*## /{printf "make %-13s%s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'VENV=1                   creates an environment (.venv) even if python3 has torch'
	@echo 'PYTHON=<path>            the interpreter to start from'
	@echo 'TORCH="<pip arguments>"  the torch to install in .venv (set-up says when that matters)'

demo: setup ## draw 256 clothes with the shipped weights, into out/demo
	@sh scripts/run -m fastdiff sample --out out/demo --num 256 --steps 25 --seed 0

test: lint ## the linters and all tests
	@sh scripts/run -m pytest --durations=10 $(call cores) tests

test-quick: setup-test ## while editing: the first case of each test for 80 seconds, those near the changed files first
	@sh scripts/run -m pytest -q --seconds $(or $(SECONDS),80) $(call cores) tests

# drawn calls, samplers, model folders and damaged datasets: 20 minutes on 2 cores. SEED=<n> (0) draws others; JOBS=<n>
# processes (2); MINUTES=<n> stops earlier; CAMPAIGNS="ops samplers" runs some of them
fuzz: setup-test ## drawn cases: 20 minutes on 2 cores
	@sh scripts/run tests/fuzz/campaign.py $(CAMPAIGNS) --seed $(or $(SEED),0) --jobs $(or $(JOBS),2) $(if $(MINUTES),--minutes $(MINUTES))

bench: setup-test ## every op, solver, loop and network against its peers
	@sh scripts/run -m pytest benchmarks --benchmark-only

# pages of docs/performance/ and docs/choosing.md from the results in benchmarks/results/
report: setup-test ## write the pages of measurements again
	@sh scripts/run -m benchmarks.report

# with warnings as errors; needs no network once its packages are installed
docs: setup-docs ## the site, into out/docs/html
	@sh scripts/run -m sphinx -q -a -E -W --keep-going -c docs -d out/docs/doctrees . out/docs/html
	@echo 'make docs: the site is out/docs/html/index.html'

# FASTDIFF_BUILD_CPU=0 FASTDIFF_BUILD_CUDA=0 make a wheel without libraries, for every platform. Where auditwheel is installed,
# as in the images of manylinux, a wheel of Linux gets the tag of the systems that it runs on; libgomp stays that of torch, because
# a second one in a process starts twice the threads
wheel: ## the wheel for this platform, into dist
	@$(or $(PYTHON),python3) -m pip wheel -q --no-deps -w dist .
	@for made in dist/*-linux_*.whl; do if [ -e "$$made" ] && command -v auditwheel >/dev/null; then \
	  auditwheel repair --exclude libgomp.so.1 -w dist "$$made" && rm "$$made"; fi; done

sdist: setup ## the source distribution, into dist
	@sh scripts/run setup.py -q sdist -d dist

# compiles every variant of the Triton kernels that the op tests launch, for sm_80, sm_90 and sm_100, without a GPU. A second
# call continues. JOBS=<n> processes (default: the cores)
gpu-compile: setup-test ## compile the Triton kernels for three GPUs, without a GPU
	@sh scripts/run tests/backend/gpu_compile.py $(if $(JOBS),--jobs $(JOBS))

# tests and measures on the GPU, with results in OUT; on 16 cores in 10 minutes
gpu-test: setup-test ## test and measure on the GPU of this machine
	@sh scripts/gpu_first_run.sh --out '$(or $(OUT),out/gpu-test)' --minutes 60 --patience 4 $(if $(WHEELS),--wheels '$(WHEELS)')

# measures on the GPU, in pieces under 9 minutes; a second call continues. WHEELS=<folder> has wheels of peers to install
gpu-report: setup-test ## measure on the GPU, in pieces of minutes
	@sh scripts/run scripts/gpu_report.py $(if $(WHEELS),--wheels '$(WHEELS)')

lint: setup-test ## ruff, its formatter and mypy
	@$(call check,ruff,check .)
	@$(call check,ruff,format --check .)
	@$(call check,mypy,)

doctor: setup ## what runs here, and why not
	@sh scripts/run -m fastdiff doctor

setup: ## what demo needs
	@sh scripts/setup.sh run

setup-test: ## what test, bench and lint need
	@sh scripts/setup.sh test

setup-docs: ## what docs needs
	@sh scripts/setup.sh docs

# removes what set-up and builds made, and keeps results in out/
clean: ## remove what set-up and builds made
	rm -rf .venv .setup build dist fastdiff/lib fastdiff_engine.egg-info .mypy_cache .pytest_cache .ruff_cache
