# `make train` and `make test` need Python 3.11 or newer, make, and a package index; everything else is installed here.
PYTHON ?= python3
VENV ?= .venv
# Further flags of `genreward train`, for example  make train ARGS="--task reach --steps 20000"
ARGS ?=
BIN := $(VENV)/bin

.PHONY: train test lint types pytest install clean

train: $(VENV)/.installed
	$(BIN)/genreward train --preset tiny $(ARGS)

test: lint types pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy follows kernels/ and export/ into the package only in an installed copy.
types: $(VENV)/.installed-dev
	rm -rf build/types build/lib build/bdist*
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/types .
	cd build/types && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../mypy -p genreward_fast

pytest: $(VENV)/.installed-dev
	$(BIN)/pytest -n 2

install: $(VENV)/.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "genreward-fast needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "python's venv module does not work here; on Debian and Ubuntu: apt-get install python3-venv"; exit 2; }

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV): several gigabytes, a few minutes"
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV): several gigabytes, a few minutes"
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) build *.egg-info
