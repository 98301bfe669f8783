# Every target builds .venv first when it is missing or older than requirements.lock.
# What a person has set up for Jupyter elsewhere never changes what the targets run.
export JUPYTER_PATH :=
export PYTHONSTARTUP :=
# Threads that wait for each other sleep, see mmlib/__init__.py; tests may load torch first.
export OMP_WAIT_POLICY ?= PASSIVE
PYTHON ?= python3
EXPERIMENT ?= demo
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := .bench
LOCKED := --universal --generate-hashes --python-version 3.11 --no-header --no-emit-index-url

.DEFAULT_GOAL := help
.PHONY: help setup lab report publish test test-slow bench lint format docs notebooks lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## build .venv from the lock (about two minutes, 6 GB)

$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else \
	"mmlib needs Python 3.11 to 3.13, found %d.%d; name another one: make PYTHON=python3.12 ..." % v)'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Not by its path alone: Jupyter would then serve its folder, and links out of it lead nowhere.
lab: $(READY) ## open JupyterLab at the notebook to start from
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_start.ipynb

report: $(READY) ## run an experiment and render its report: make report EXPERIMENT=flickr8k-cpu
	$(BIN)/python -m mmlib run params/$(EXPERIMENT) $(ARGS)

publish: $(READY) ## copy a complete report to reports/published/ and renew README and docs: make publish EXPERIMENT=demo
	$(BIN)/python -m mmlib publish $(EXPERIMENT)

test: lint ## lint, unit tests, notebooks against their stored outputs
	$(BIN)/python -m pytest -q
	$(BIN)/python -m pytest -q --nbval --nbval-current-env notebooks/

test-slow: $(READY) ## the long forms of the statistical simulations
	$(BIN)/python -m pytest -q -m slow

# Peers to measure against lie beside the environment: lightning-fabric imports torchmetrics wherever it is
# installed, which costs every kernel seconds.
$(PEERS)/.ready: requirements-bench.lock $(READY)
	rm -rf $(PEERS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	  --target $(PEERS) -r requirements-bench.lock
	@touch $@

bench: $(PEERS)/.ready ## measure side by side with the usual ways; prints tables, writes benchmarks/results/
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(READY) ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(READY) ## mend style and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(READY) ## write docs/parameters.md anew from the configs
	$(BIN)/python -m mmlib.config.page

# The first notebook shows the newest local report: what is stored is what a fresh clone shows.
notebooks: $(READY) ## execute the notebooks with their defaults and store the outputs
	rm -rf runs/quick-train runs/quick-continue runs/quick-ablation*
	MMLIB_REPORTS=$(CURDIR)/runs/no-reports $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False notebooks/*.ipynb
	$(BIN)/nbstripout --keep-output --keep-count --keep-id notebooks/*.ipynb

lock: $(READY) ## renew the locks from pyproject.toml (needs uv)
	uv pip compile $(LOCKED) --extra dev pyproject.toml -o requirements.lock
	$(BIN)/python -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*extras["bench"], sep="\n")' | uv pip compile $(LOCKED) --no-deps - -o requirements-bench.lock

clean: ## remove generated files: environment, caches, runs, local reports (data/ stays, but for its cache)
	rm -rf $(VENV) $(PEERS) .pytest_cache .ruff_cache .hypothesis *.egg-info runs data/cache
	find reports -mindepth 1 -maxdepth 1 ! -name published -exec rm -rf {} +
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
