# make train export pipeline     the whole path, from a bare clone
# make test                      everything CI runs
# make help                      the rest
#
# Every target builds what it needs first; the only things assumed are python3 (3.11 or 3.12), make, git and g++.

.NOTPARALLEL:
.DEFAULT_GOAL := help
SHELL := /bin/bash

RECIPE ?= recipes/digits.yaml
STORE ?= .isthmus
# The registered name stands in the recipe; NAME= on the make line wins (a NAME of the environment does not).
ifneq ($(origin NAME),command line)
NAME := $(shell sed -n 's/^name: *\([A-Za-z0-9_-]*\).*/\1/p' $(RECIPE))
endif
PORT ?= 8500
REST_PORT ?= 8501

VENV := .venv
PY := $(VENV)/bin/python
UV := $(VENV)/bin/uv
ISTHMUS := $(VENV)/bin/isthmus
UV_VERSION := $(shell sed -n 's/^uv==\([0-9.]*\).*/\1/p' requirements.lock)
PARTS := cli training export tfx_pipeline serving mlflow/lineage

# What the make line overrides in the recipe: make train MODEL=resnet50 DATA=~/flowers EPOCHS=3
OVERRIDES = --config "$(RECIPE)" --home "$(STORE)" $(if $(MODEL),--model $(MODEL)) $(if $(DATA),--data "$(DATA:~/%=$(HOME)/%)") \
	$(if $(filter command,$(origin NAME)),--name $(NAME)) $(foreach pair,$(SET),--set $(pair)) \
	$(TRACKING)
TRACKING = $(if $(TRACKING_URI),--tracking-uri "$(TRACKING_URI)")
TRAINING = $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(SEED),--seed $(SEED)) $(if $(FORCE),--force)

.PHONY: help
help: ## this list
	@echo "make TARGET [RECIPE=recipes/x.yaml MODEL=resnet50 DATA=folder EPOCHS=3 SEED=1 SET='train.lr=0.1 ...']"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

# ---- the environment ------------------------------------------------------------------------------------------

# The first Python on PATH that the lock is for.
find_python = for p in $(PYTHON) python3 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo "$$p" && break; done

$(VENV)/bin/uv: requirements.lock
	@python=$$($(find_python)); \
	if [ -z "$$python" ]; then echo "error: Python 3.11 or 3.12 is needed; install the package python3.11 (or name one: make PYTHON=/path/to/python3.12)" >&2; exit 1; fi; \
	command -v git >/dev/null || { echo "error: git is needed; install the package git" >&2; exit 1; }; \
	command -v g++ >/dev/null || { echo "error: a C++ compiler is needed; install the package g++" >&2; exit 1; }; \
	"$$python" -c 'import sysconfig, os, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
		|| { echo "error: Python's headers are needed; install the package python3-dev" >&2; exit 1; }; \
	[ -x $(PY) ] || "$$python" -m venv $(VENV) || { echo "error: $$python has no venv; install the package python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@$(PY) -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

# ml-metadata and TFDV publish wheels for glibc 2.39 only; tfx_pipeline/glibc.py makes them load on older systems.
# Bytecode is compiled once, here: TensorFlow's import costs 25 s of CPU without it and 9 s with it.
$(VENV)/.installed: requirements.lock $(VENV)/bin/uv tfx_pipeline/glibc.py
	@echo "installing $$(grep -c '^[a-z]' requirements.lock) pinned packages into $(VENV) (about 9 GB) ..."
	@$(UV) pip install --quiet --python $(PY) --compile-bytecode --python-platform x86_64-manylinux_2_39 -r requirements.lock
	@$(PY) tfx_pipeline/glibc.py
	@touch $@

# A strict editable install links every file, so a new or a removed file needs a new install; an edited one does not.
FILES := $(sort $(shell find $(PARTS) -name '*.py' -o -name '*.proto' 2>/dev/null))
build/.linked: $(VENV)/.installed setup.cfg pyproject.toml build/.files
	@rm -rf build/__editable__*
	@$(UV) pip install --quiet --python $(PY) --no-deps --editable .
	@touch $@

.PHONY: FORCE_CHECK
FORCE_CHECK:
build/.files: FORCE_CHECK
	@mkdir -p build; echo '$(FILES)' | cmp -s - $@ || echo '$(FILES)' > $@

.PHONY: env
env: build/.linked ## the environment: .venv from requirements.lock, and isthmus linked into it

.PHONY: lock
lock: $(VENV)/bin/uv ## resolve requirements.lock from setup.cfg; pins that still fit stay (UPGRADE=1: newest)
	@$(UV) pip compile --quiet $(if $(UPGRADE),--upgrade) --universal --python-version 3.11 --all-extras --no-emit-index-url --no-emit-find-links \
		--custom-compile-command 'make lock' setup.cfg -o requirements.lock

# ---- the path -------------------------------------------------------------------------------------------------

.PHONY: train export pipeline serve promote rollback lineage doctor
train: build/.linked ## train the recipe's model in PyTorch
	@$(ISTHMUS) train $(OVERRIDES) $(TRAINING)

export: $(STORE)/checkpoints/$(NAME)/latest ## carry the latest checkpoint into a verified SavedModel bundle
	@$(ISTHMUS) export $(OVERRIDES) $(if $(FORCE),--force)

pipeline: $(STORE)/bundles/$(NAME)/latest ## validate, push and register the latest bundle with TFX
	@$(ISTHMUS) pipeline $(OVERRIDES)

serve: $(STORE)/serving/$(NAME) ## serve the pushed model on :8500 (gRPC) and :8501 (REST)
	@$(ISTHMUS) serve --model_name=$(NAME) --model_base_path=$(abspath $(STORE)/serving/$(NAME)) \
		--port=$(PORT) --rest_api_port=$(REST_PORT)

promote: build/.linked ## make the challenger champion
	@$(ISTHMUS) registry promote $(NAME) --home "$(STORE)" $(TRACKING)

rollback: build/.linked ## make the previous champion champion again
	@$(ISTHMUS) registry rollback $(NAME) --home "$(STORE)" $(TRACKING)

lineage: $(STORE)/serving/$(NAME) ## where the champion came from
	@$(ISTHMUS) lineage models:/$(NAME)@champion --home "$(STORE)" $(TRACKING)

doctor: build/.linked ## what this machine has, and what is wrong
	@$(ISTHMUS) doctor --home "$(STORE)" $(TRACKING)

# Each stage makes what it lacks, and only then: `make export` after `make train MODEL=x` exports x. The first
# prerequisite is always checked, the stages before it run only where their result does not exist.
$(STORE)/checkpoints/$(NAME)/latest: | build/.linked
	@$(ISTHMUS) train $(OVERRIDES) $(TRAINING)

$(STORE)/bundles/$(NAME)/latest: | $(STORE)/checkpoints/$(NAME)/latest
	@$(ISTHMUS) export $(OVERRIDES)

$(STORE)/serving/$(NAME): | $(STORE)/bundles/$(NAME)/latest
	@$(ISTHMUS) pipeline $(OVERRIDES)

# The image of the pipeline's tasks on a cluster; IMAGE_TARGET=dataflow for one that Dataflow's workers start, too.
IMAGE ?= isthmus:$(shell sed -n 's/^version = *//p' setup.cfg)
IMAGE_TARGET ?= pipeline
.PHONY: image
image: ## build the pipeline's container image (IMAGE=registry/name:tag, IMAGE_TARGET=dataflow)
	docker build --file tfx_pipeline/Dockerfile --target $(IMAGE_TARGET) --tag $(IMAGE) .

# ---- quality --------------------------------------------------------------------------------------------------

# torch and TensorFlow never share a process, so neither do their tests.
TORCH_WORLD := $(wildcard tests/test_*.py) tests/cli tests/mlflow tests/training $(filter-out tests/export/tf_half,$(wildcard tests/export/*))
TF_WORLD := tests/export/tf_half tests/serving tests/tfx_pipeline
STORIES := tests/stories

.PHONY: test test-fast lint format bench
test: build/.linked ## everything CI runs after lint
	@$(PY) -m pytest $(TORCH_WORLD)
	@$(PY) -m pytest $(TF_WORLD)
	@$(PY) -m pytest $(STORIES)

test-fast: build/.linked ## the pure core, in seconds
	@$(PY) -m pytest -m 'not slow' tests/cli $(wildcard tests/export/test_*.py)

lint: build/.linked ## ruff and mypy
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@cd build && MYPYPATH=$$(echo __editable__*) ../$(PY) -m mypy --config-file ../setup.cfg --cache-dir ../.mypy_cache -p isthmus

.PHONY: extras
extras: $(VENV)/.installed ## each extra resolves alone, as its own image installs it
	@mkdir -p build; for extra in training readers export pipeline serving server lineage dev; do \
		$(UV) pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_39 --extra $$extra \
			--constraint requirements.lock setup.cfg -o build/extra-$$extra.txt || exit 1; \
		echo "isthmus[$$extra] resolves to $$(grep -c '^[a-z]' build/extra-$$extra.txt) packages"; done

format: build/.linked ## let ruff rewrite what lint would refuse
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

bench: build/.linked ## measure, and write docs/benchmarks.md
	@$(PY) benchmarks/path.py
	@$(PY) benchmarks/training.py
	@$(PY) benchmarks/training_gpu.py
	@$(PY) benchmarks/bridge.py
	@$(PY) benchmarks/bridge_preprocessing.py
	@$(PY) benchmarks/serving.py
	@$(PY) benchmarks/example_gen.py
	@$(PY) benchmarks/predict.py
	@$(PY) benchmarks/precision.py
	@$(PY) benchmarks/pipeline_overhead.py
	@$(PY) benchmarks/lineage.py
	@$(PY) benchmarks/four_families.py

.PHONY: soak
soak: build/.linked ## a long day of the server: 200 reloads under load, 10,000 malformed messages
	@$(PY) benchmarks/soak.py

.PHONY: clean
clean: ## remove everything made here except the environment (.venv) and the store ($(STORE))
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
