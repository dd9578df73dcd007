# `make demo` and `make test` need nothing but Python 3.11 and make; CONTRIBUTING.md describes the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-script-location

SCHEMA = $(BIN)/check-jsonschema --quiet --builtin-schema vendor.

# Most tests wait for something most of the time. A file's tests stay together, and those with real I2P routers.
SIDE_BY_SIDE := --numprocesses=5 --dist=loadgroup --quiet

# The tests that start neither a router nor many programs, and so take two minutes of CPU. Each process of pytest reads
# all of their files, which takes 5 s.
PROGRAMS := $(addprefix tests/,spawning/test_child.py spawning/test_parent.py transports/test_program.py \
    transports/ssh/test_deferred.py transports/ssh/config/test_identities.py)
QUICK := $(filter-out $(PROGRAMS),$(wildcard $(addprefix tests/,addresses api carriers config/test_*.py engine eventloop \
    spawning/test_*.py streams $(addprefix transports/,i2p proxies ssh/config/test_*.py ssh/test_*.py test_*.py tls) \
    test_imports.py)))

.PHONY: release zipapp torture soak fuzz mutants demo test quick install check docs check-versions check-races check-foreign bench image

# With I2P=router the demo meets a real router of this machine; else it brings a bridge of its own.
demo: $(VENV)/.installed
	@$(BIN)/relay demo $(if $(filter router,$(I2P)),--sam 127.0.0.1:7656)

test: install
	@tests/debian-packages tests/debian-packages.txt
	@tests/npm-packages tests/npm-packages.txt
	@tests/source-releases tests/source-releases.txt
	@$(BIN)/python -m pytest $(or $(ARGS),$(SIDE_BY_SIDE))

# A part of the tests, without real routers, for daily work.
quick: install
	@tests/debian-packages tests/debian-packages.txt
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) --numprocesses=4 $(QUICK)

install: $(VENV)/.installed-dev

check: install docs
	@$(BIN)/ruff format --check --quiet . || { echo 'format: run $(BIN)/ruff format .' >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python docs/check_words.py
	@$(SCHEMA)github-workflows .github/workflows/*.yml
	@$(BIN)/check-jsonschema --quiet --builtin-schema custom.github-workflows-require-timeout .github/workflows/*.yml
	@$(SCHEMA)github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	@$(SCHEMA)renovate .github/renovate.json
	@$(SCHEMA)citation-file-format CITATION.cff
	@echo 'format, lint, types, import directions, words and documentation are clean'

# A site that works from the file system and offline: build/docs/index.html.
docs: install
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --nitpicky docs build/docs

# With other versions of what it depends on; ARGS=paramiko or ARGS=python for one half of it.
check-versions: install
	@tests/debian-packages tests/debian-packages.txt
	@tests/npm-packages tests/npm-packages.txt
	@tests/source-releases tests/source-releases.txt
	@tests/check-versions $(ARGS)

# On machines that find races: slow in several ways, with one core, beside busy loops; ARGS=loops for one of them.
check-races: install
	@tests/debian-packages tests/debian-packages.txt
	@tests/npm-packages tests/npm-packages.txt
	@tests/source-releases tests/source-releases.txt
	@tests/check-races $(ARGS)

# All of CPython's own network tests through relay socks; `make test` runs those that find most.
check-foreign: install
	@FOREIGN=all $(BIN)/python -m pytest --quiet tests/foreign $(ARGS)

bench: $(VENV)/.installed-bench
	@tests/debian-packages benchmarks/debian-packages.txt
	@$(BIN)/python -m benchmarks $(ARGS)

# Random schedules through relays of each transport, commands under faults of their system calls; crashes and failing
# networks by ARGS='--relays crashes' and ARGS='--relays network'.
torture: install
	@tests/debian-packages tests/debian-packages.txt
	@PYTHONPATH=tests/support $(BIN)/python -m tests.torture --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED)) $(ARGS)

# Connections and bulk streams through several tunnels, with samples of what may not grow.
soak: $(VENV)/.installed-bench
	@tests/debian-packages tests/debian-packages.txt
	@PYTHONPATH=tests/support $(BIN)/python -m tests.torture.soak --minutes $(or $(MINUTES),10) $(ARGS)

# Inputs that coverage finds, for each parser; ARGS names some of them.
fuzz: $(VENV)/.installed-fuzz
	@$(BIN)/python -m tests.torture.fuzz --minutes $(or $(MINUTES),10) $(ARGS)

# Small changes of parsers, limits and the engine, each of which a test must notice; ARGS names some of the modules.
mutants: $(VENV)/.installed-mutants
	@$(BIN)/python -m tests.mutants $(ARGS)

# Wheel and source release of the last commit in dist/, built twice, checked and tried in empty environments.
release: $(VENV)/.installed-release
	@deploy/release/build

# relay in one file for this platform, dist/relay.pyz: for a machine that has Python and no pip.
zipapp: $(VENV)/.installed-release
	@deploy/release/zipapp

# The image of the Containerfile, also where no registry of images can be reached, and a try of it: alone, and in pods
# behind HAProxy. For root; takes minutes.
image: install
	@tests/debian-packages tests/debian-packages.txt
	@tests/debian-packages deploy/container/debian-packages.txt
	@deploy/container/build
	@deploy/container/try
	@$(BIN)/python -m pytest --quiet deploy/kubernetes

# Where Debian's python3-venv is missing, the pip outside fills the environment.
$(BIN)/python:
	@echo 'making $(VENV)'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "relay needs Python 3.11 or newer: make PYTHON=...")'
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV) && $(PYTHON) -m venv --without-pip $(VENV) \
	    && $(PYTHON) -m pip --quiet --python $(BIN)/python install pip; }

# Stamps: the environment is brought up to date only when pyproject.toml has changed.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo 'installing relay into $(VENV)'
	@$(PIP) --editable '.[all]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo 'installing relay and the tools of its tests into $(VENV)'
	@$(PIP) --editable '.[dev]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-bench: pyproject.toml | $(VENV)/.installed-dev
	@$(PIP) --editable '.[dev,bench]'
	@touch $@

$(VENV)/.installed-release: pyproject.toml | $(VENV)/.installed-dev
	@$(PIP) --editable '.[dev,release]'
	@touch $@

$(VENV)/.installed-fuzz: pyproject.toml | $(VENV)/.installed-dev
	@$(PIP) --editable '.[dev,fuzz]'
	@touch $@

$(VENV)/.installed-mutants: pyproject.toml | $(VENV)/.installed-dev
	@$(PIP) --editable '.[dev,mutants]'
	@touch $@
