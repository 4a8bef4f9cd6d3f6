# Two commands on a fresh machine with Python 3.11 or later: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CLIENTS := tests/node/node_modules/.ready
HELM := $(BIN)/helm
SUPPLY := $(VENV)/supply
JOBS ?= auto
# Whole ranges of the suite go to a worker, which takes tests from another when it is done: a fixture of a module is made
# once. The suite starts programs a hundred times, so what Python compiled is kept, whatever the machine prefers.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo run test check format bench sbom licences audit clean lock

help:  ## this list
	@grep -E '^[a-z ]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 22

setup: $(READY)  ## virtual environment with the locked dependencies

$(READY): requirements/test.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/test.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

# The TypeScript SDK and Claude Code are clients in the suite where Node.js is there.
$(CLIENTS): tests/node/package-lock.json
	@if command -v npm >/dev/null; then cd tests/node && npm ci --no-fund --no-audit --loglevel=error && touch node_modules/.ready; \
	else echo "npm is not there: the tests with the TypeScript SDK and Claude Code will be skipped"; fi

# The chart is tested with the real Helm: the one of the PATH, or built where Go is there, from sources whose hashes are in
# tools/helm/go.sum. The first build takes minutes.
$(HELM): tools/helm/go.mod tools/helm/go.sum | $(READY)
	@if command -v helm >/dev/null; then ln -sf "$$(command -v helm)" $@; \
	elif command -v go >/dev/null; then echo "building helm, once: some minutes"; \
	  (cd tools/helm && timeout 240 go build -ldflags '-s -w' -o $(abspath $@) helm.sh/helm/v4/cmd/helm) \
	  || echo "helm could not be built: the tests of the chart will be skipped"; \
	else echo "neither helm nor Go is there: the tests of the chart will be skipped"; fi

demo: $(READY)  ## simulator, router and a varied workload, with the routes, costs and savings of each request
	@$(BIN)/router demo

run: $(READY)  ## serve for real: policies/, upstream https://api.anthropic.com, your own key passed on
	@$(BIN)/router serve

test: $(READY) $(CLIENTS) $(HELM)  ## the whole test suite
	$(PYTEST)

check: $(READY) $(CLIENTS) $(HELM)  ## what CI runs: format, lint, strict types, floors, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/router policy test policies
	$(PYTEST)

format: $(READY)  ## format and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## CPU and latency against a plain nginx reverse proxy, beside the budget
	@$(BIN)/python -m bench.run

# What reads the supply chain has an environment of its own: the suite does not need it.
$(SUPPLY)/.ready: requirements/supply.txt
	$(PYTHON) -m venv $(SUPPLY)
	$(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/supply.txt
	@touch $@

sbom licences audit: $(SUPPLY)/.ready  ## what the image is made of: packages, their licences, known vulnerabilities
	@$(SUPPLY)/bin/python -m tools.supply $@

lock:  ## rewrite requirements/*.txt from pyproject.toml (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml -o requirements/run.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml --group test -o requirements/test.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --group build -o requirements/build.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --group supply -o requirements/supply.txt

clean:  ## forget the virtual environment and caches
	rm -rf $(VENV) tests/node/node_modules .mypy_cache .ruff_cache .pytest_cache
