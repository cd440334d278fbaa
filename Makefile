# xenlb: build, test, install. `make help` lists what is here.
#
# The default Python is the distribution's; everything Python lives in a private virtual
# environment (.venv in the checkout, $(PREFIX)/lib/xenlb once installed).

PYTHON  ?= /usr/bin/python3
VENV    ?= .venv
PREFIX  ?= /usr/local
DESTDIR ?=
SYSCONFDIR ?= /etc
WHEELS  ?=
LAB     ?= xen
DEBIAN  ?=
ONLY    ?=
# Unit tests wait two thirds of their time: twice as many processes as processors.
JOBS    ?= $(shell echo $$((2 * $$(nproc))))
PYTEST  ?=

# The Debian release of the labs' images; empty: the machine's own, or bookworm.
ifneq ($(DEBIAN),)
export XENLB_DEBIAN := $(DEBIAN)
endif

MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

BIN := $(VENV)/bin
say = @printf '\033[1m== %s\033[0m\n' "$(1)"
ifeq ($(shell test -t 1 && echo yes),)
say = @printf '== %s\n' "$(1)"
endif

.PHONY: help deps venv lint format schema lowest unit check test soak bench docs demo lab-shell wheels install uninstall clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  variables: PYTHON=$(PYTHON) PREFIX=$(PREFIX) DESTDIR= WHEELS=DIR LAB=xen|uml DEBIAN=bookworm|trixie ONLY=table PYTEST="-k word"'

deps: ## install the Debian packages that build, tests and labs need
	@tools/deps tools/apt-packages tests/lab/apt-packages

# The distribution's Python headers and libvirt's are needed to build libvirt-python.
$(VENV)/.stamp: setup.cfg pyproject.toml
	$(call say,virtual environment $(VENV) (a minute when new))
	@tools/deps tools/apt-packages
	@test "$$($(BIN)/python -c 'import sys; print(sys.version)' 2>/dev/null)" = \
	      "$$($(PYTHON) -c 'import sys; print(sys.version)')" || $(PYTHON) -m venv --clear $(VENV)
	@tools/quietly $(BIN)/python -m pip install --disable-pip-version-check \
	    $(if $(WHEELS),--no-index --find-links $(WHEELS)) --editable '.[dev]'
	@touch $@

venv: $(VENV)/.stamp ## the private virtual environment with the development tools
	@:

lint: venv ## ruff, mypy, codespell, words, shellcheck, man pages
	$(call say,lint)
	@status=0; \
	$(BIN)/ruff check --quiet . || status=1; \
	$(BIN)/ruff format --quiet --check --diff . || status=1; \
	$(BIN)/mypy --no-error-summary || status=1; \
	$(BIN)/codespell || status=1; \
	tools/lint-words || status=1; \
	tools/lint-scripts || status=1; \
	exit $$status

format: venv ## let ruff put the code in shape
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

schema: venv ## write etc/schema.json from the declarations of the keys
	@$(BIN)/python -m tools.schema

# With the bytecode of the tests kept: to compile them takes as long as a tenth of the tests.
unit: venv ## the tests that need no lab (a minute)
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -q -n $(JOBS) \
	    tests --ignore=tests/lab --ignore=tests/bench $(PYTEST)

# The oldest versions that setup.cfg allows, against the tests of what touches libraries.
LOWEST := build/lowest
$(LOWEST)/.stamp: setup.cfg
	$(call say,virtual environment $(LOWEST) with the oldest versions allowed (a minute))
	@tools/deps tools/apt-packages
	@$(PYTHON) -m venv --clear $(LOWEST)
	@sed -n 's/^    \([A-Za-z0-9-]*\) >= /\1==/p' setup.cfg >$(LOWEST)/constraints
	@tools/quietly $(LOWEST)/bin/python -m pip install --disable-pip-version-check \
	    --constraint $(LOWEST)/constraints --editable . \
	    pytest pytest-xdist pytest-timeout hypothesis jsonschema
	@touch $@

# By library: click and rich, PyYAML, watchdog, libvirt, pyroute2, h11 and dnspython, Jinja2.
LOWEST_TESTS := cli \
    config/test_loader.py config/test_robust.py \
    config/test_watcher.py hypervisor/test_hooks.py \
    $(addprefix hypervisor/test_,finder.py connections.py libvirt_source.py queries.py metadata.py qmp.py) \
    agent/test_drain_worker.py agent/test_sources.py guestside/transport/test_open.py \
    ipvs/test_netlink_codec.py director/test_addresses.py health/test_syn.py \
    health/test_talks.py health/test_dns.py \
    guestside/render/test_template.py

lowest: $(LOWEST)/.stamp ## the tests of what touches libraries, with the oldest versions allowed
	$(call say,tests with the oldest versions allowed)
	@env -u PYTHONDONTWRITEBYTECODE $(LOWEST)/bin/python -m pytest -qq -n $(JOBS) -p no:cacheprovider \
	    $(addprefix tests/unit/,$(LOWEST_TESTS))

check: deps venv lint ## before each commit: linters, unit tests, a smoke test of each lab
	$(call say,unit tests and a smoke test of each lab)
	@XENLB_REQUIRE_LABS=1 $(BIN)/python -m pytest -q tests -n $(JOBS) --max-worker-restart 0 \
	    -m 'smoke or not lab' $(PYTEST)

# One run over everything, so that pytest's closing line is the last one and tells it all. Three
# processes on two processors: the Xen lab takes one, and the other labs wait half of their time.
test: deps venv lint lowest ## everything: packages, linters, unit tests, kernel lab, Xen lab
	$(call say,tests)
	@XENLB_REQUIRE_LABS=1 $(BIN)/python -m pytest -q tests -n 3 --max-worker-restart 0 $(PYTEST)

soak: deps venv ## the long forms: all rounds of kills, restarts and shutdowns under load
	@XENLB_SOAK=1 XENLB_REQUIRE_LABS=1 $(BIN)/python -m pytest -s tests/lab tests/unit/fuzz $(PYTEST)

bench: deps venv ## benchmark tables (ONLY=table for one)
	@$(BIN)/python -m tests.bench $(ONLY)

# MkDocs comes with this target only: nothing else needs it.
$(VENV)/.docs-stamp: $(VENV)/.stamp
	@tools/quietly $(BIN)/python -m pip install --disable-pip-version-check \
	    $(if $(WHEELS),--no-index --find-links $(WHEELS)) --editable '.[dev,docs]'
	@touch $@

docs: $(VENV)/.docs-stamp ## the documentation as a site in build/site; links are checked
	$(call say,documentation in build/site)
	@tools/quietly $(BIN)/mkdocs build --clean

demo: deps venv ## boot a lab, run the agent, shut a guest down under traffic (LAB=uml: the quick one)
	@$(BIN)/python -m tests.lab.demo --lab=$(LAB)

lab-shell: deps venv ## a shell in the Xen lab's Dom0
	@$(BIN)/python -m tests.lab.shell --lab=$(LAB)

wheels: ## collect the dependencies' wheels in WHEELS=DIR, for a Dom0 without network
	@test -n '$(WHEELS)' || { echo 'say where: make wheels WHEELS=DIR' >&2; exit 2; }
	@$(PYTHON) -I tools/install.py --wheels '$(WHEELS)'

install: ## put the agent on this machine (PREFIX=, DESTDIR=, WHEELS=); configuration is kept
	@$(PYTHON) -I tools/install.py --prefix '$(PREFIX)' --destdir '$(DESTDIR)' \
	    --sysconfdir '$(SYSCONFDIR)' --venv '$(VENV)' $(if $(WHEELS),--find-links '$(WHEELS)')

uninstall: ## take it away again; configuration stays
	@$(PYTHON) -I tools/install.py --uninstall --prefix '$(PREFIX)' --destdir '$(DESTDIR)' --sysconfdir '$(SYSCONFDIR)'

clean: ## remove what was built in the checkout (the labs' cache stays)
	@rm -rf build dist *.egg-info $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -prune -exec rm -rf {} +
