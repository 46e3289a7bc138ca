# onetrip: `make demo` and `make test` need nothing but python3, its venv module, make and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(wildcard proxy/*.py proxy/*/*.py proxy/*/*/*.py routing/*.py)  # what may be compiled
# What an earlier build left for this interpreter; another one's stays.
COMPILED = $(wildcard *.so proxy/*.so proxy/*/*.so proxy/*/*/*.so routing/*.so)
FORGET = suffix=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))'); \
	for one in $(COMPILED); do case "$$one" in *"$$suffix") rm -f "$$one";; esac; done

install: $(VENV)/.base  ## the program, its hot path compiled where a C compiler is there

.PHONY: install demo test lint types unit day bench load clean help

help:            ## list what can be made
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/.base: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(FORGET)
	@echo 'installing, and compiling the hot path: a minute'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.test: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(FORGET)
	@echo 'installing, and compiling the hot path: a minute'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,lab]'
	touch $(VENV)/.base $@

$(VENV)/.demo:
	test -e $(VENV)/.base || test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -e $(VENV)/.base || ONETRIP_PURE=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

demo: $(VENV)/.demo  ## three regions, a WAN, the proxy and live traffic on this machine
	$(BIN)/onetrip demo $(ARGS)

test: lint types unit  ## lint, type-check, run every test

lint: $(VENV)/.test  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test  ## mypy --strict
	$(BIN)/mypy

unit: $(VENV)/.test  ## pytest
	$(BIN)/pytest $(ARGS)

day: $(VENV)/.test  ## every operation under load, with one worker and with two (a test run takes turns)
	DAY=full $(BIN)/pytest tests/day $(ARGS)

bench: $(VENV)/.test  ## CPU per request beside Envoy, HAProxy and nginx
	$(BIN)/python -m loadtests.cpu $(ARGS)

load: $(VENV)/.test  ## Locust against the lab
	$(BIN)/locust -f loadtests/locustfile.py $(ARGS)

clean:           ## remove what was built
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
