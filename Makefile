# fivecrop: `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
CLIENTS := $(VENV)/clients
CHECKERS := $(VENV)/checkers
# A machine whose NVIDIA driver answers gets the GPU build of ONNX Runtime.
VARIANT := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
# The development environment serves too, on a CPU.
SERVING := $(VENV)/.$(if $(wildcard $(VENV)/.dev),$(VARIANT:cpu=dev),$(VARIANT))
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python
TAG ?= localhost/fivecrop:$(VARIANT)
RECIPE ?= training/recipes/cifar10-airbench.toml
SEED ?= 0
# The bundled model is what no name means, unless the environment chooses models itself.
DEFAULT_MODEL := $(if $(FIVECROP_MODEL_REPOSITORY)$(FIVECROP_MODELS)$(FIVECROP_DEFAULT_MODEL),,--default-model cifar10-airbench)
# ONNX Runtime reports its use unless told; the commands set this themselves, tests import it bare.
export ORT_DISABLE_TELEMETRY := 1

.PHONY: help setup fmt check test e2e e2e-short e2e-browser image image-check e2e-container k8s-check serve train export bench experiments lock clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

$(VENV)/.tools: requirements/tools.txt
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fivecrop needs Python 3.11 or newer")'
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# .venv/.cpu and .venv/.gpu serve; .venv/.dev also trains, tests and measures.
$(VENV)/.%: requirements/%.txt pyproject.toml $(VENV)/.tools
	@echo "installing requirements/$*.txt into $(VENV)" >&2
	$(if $(filter gpu,$*),$(BIN)/uv pip uninstall --quiet --python $(BIN)/python onnxruntime onnxruntime-gpu)
	$(INSTALL) --require-hashes -r $<
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

# Both builds of ONNX Runtime are one folder: that for GPUs goes where the other was, and stays.
$(VENV)/.gpu: $(wildcard $(VENV)/.dev)

# Ray comes on top of the development environment, with the same versions of everything else.
$(VENV)/.ray: $(VENV)/.dev

# Beside the development environment: upstream clients, which want another protobuf, and checkers, which pin much.
$(VENV)/%/.installed: requirements/%.txt $(VENV)/.tools
	@echo "installing $< into $(@D)" >&2
	python3 -m venv $(@D)
	$(BIN)/uv pip install --quiet --python $(@D)/bin/python --require-hashes -r $<
	@touch $@

# Schemas of custom resources, and the types of a dashboard, for k8s-check.
$(VENV)/schemas/.installed:
	npm install --silent --no-audit --no-fund --prefix $(@D) \
		@kubernetes-models/prometheus-operator@6.0.0 @kubernetes-models/keda@2.0.0 \
		@grafana/schema@11.4.0 typescript@5.9.3
	@touch $@

# A process a core, with one thread each; the tests of a file stay together, as their fixtures want.
PYTEST_SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile
E2E := -m e2e --durations 20

setup: $(VENV)/.dev ## make the development environment (with torch)

fmt: $(VENV)/.dev ## format the code
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .

check: $(VENV)/.dev ## lint, types, layers, generated code: everything short of running it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate-proto --check
	$(BIN)/python scripts/write-settings-table --check
	$(BIN)/python scripts/write-dashboard --check
	$(BIN)/python scripts/write-alerts --check
	$(BIN)/mypy

test: $(VENV)/.dev ## run the tests that start no server, train no model, open no browser
	$(PYTEST_SIDE_BY_SIDE) -m "not e2e and not browser and not container and not large"

e2e: $(VENV)/.dev $(VENV)/.ray $(CLIENTS)/.installed ## run the tests that start real servers and train a real model (an hour)
	scripts/install-system-packages.sh prometheus
	$(PYTEST_SIDE_BY_SIDE) $(E2E) tests/training
	$(BIN)/pytest $(E2E) --ignore tests/training

# What this project promises first: the README, every client, the doors, the way out, a training from nothing.
E2E_SHORT := bento docs doors drain readme score_readme serve train_digits upstream_clients

e2e-short: $(VENV)/.dev $(CLIENTS)/.installed ## run those of `make e2e` that every change runs (ten minutes)
	scripts/install-system-packages.sh prometheus
	$(BIN)/pytest $(E2E) $(E2E_SHORT:%=tests/e2e/test_%.py)

e2e-browser: $(VENV)/.dev ## run the tests that open the playground in Chromium
	scripts/install-system-packages.sh chromium
	$(BIN)/pytest -m browser

image: ## build the image as TAG with buildah (BASE, VARIANT, MODELS=mounted|baked)
	scripts/install-system-packages.sh buildah runc
	BASE="$(BASE)" VARIANT="$(VARIANT)" MODELS="$(MODELS)" REVISION="$(shell git rev-parse HEAD)" \
		scripts/build-image $(TAG)

image-check: $(CHECKERS)/.installed ## lint the Dockerfile
	$(CHECKERS)/bin/hadolint Dockerfile
	$(CHECKERS)/bin/checkov --skip-download --quiet --compact --framework dockerfile -f Dockerfile

e2e-container: $(VENV)/.dev image-check ## build the image, run it hardened and use it
	scripts/install-system-packages.sh buildah podman runc catatonit mmdebstrap
	$(BIN)/pytest -m container

k8s-check: $(VENV)/.dev $(CHECKERS)/.installed $(VENV)/schemas/.installed ## render k8s/, check it against the schemas of 1.31 to 1.37, try the alerts
	scripts/install-system-packages.sh prometheus
	$(CHECKERS)/bin/python scripts/check-manifests
	$(BIN)/pytest -q tests/repo/test_k8s.py tests/repo/test_k8s_rendered.py tests/repo/test_alerts.py \
		tests/repo/test_dashboard_types.py

serve: $(SERVING) ## serve exported_models: HTTP on 3000, gRPC on 3001
	$(BIN)/fivecrop serve $(DEFAULT_MODEL)

train: $(VENV)/.dev ## train RECIPE with SEED into runs/
	$(BIN)/fivecrop train $(RECIPE) --seed $(SEED)

export: $(VENV)/.dev ## export RUN as NAME into exported_models/
	$(BIN)/fivecrop export $(RUN) --name $(NAME)

bench: $(VENV)/.dev $(VENV)/.ray ## measure speed and memory beside the peers (more than an hour)
	scripts/install-system-packages.sh wrk
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.protocols
	$(BIN)/python -m benchmarks.idle
	$(BIN)/python -m benchmarks.scoring --models resnet-18 mobilenet-v2 squeezenet1.1

experiments: $(VENV)/.dev ## run the studies of docs/experiments.md again, or STUDY (about half an hour)
	$(BIN)/python scripts/run-experiments $(STUDY)

LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
lock: $(VENV)/.tools ## renew the locks under requirements/
	for extra in cpu gpu openvino dev; do $(LOCK) --extra $$extra pyproject.toml -o requirements/$$extra.txt || exit; done
	for group in clients checkers inventory; do $(LOCK) --group $$group -o requirements/$$group.txt || exit; done
	$(LOCK) --extra ray-job -c requirements/dev.txt pyproject.toml -o requirements/ray.txt
	$(LOCK) --extra cpu --extra remote --extra score -c requirements/dev.txt pyproject.toml -o requirements/score.txt
	$(LOCK) --extra cpu --extra remote --extra train -c requirements/dev.txt pyproject.toml -o requirements/train.txt
	printf 'hatchling\nuv\n' | $(LOCK) - -o requirements/tools.txt

clean: ## remove the environment, caches and benchmark files; runs/ and exported_models/ stay
	rm -rf $(VENV) .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
