# `make demo` and `make test` set everything up by themselves, in .venv, from the package registry only.

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
READY := .venv/.ready

.PHONY: demo demo-full test lint format constraints clean

demo: $(READY)
	mmkd demo

demo-full: $(READY)
	mmkd demo --full

# Two processes; tests/conftest.py says what runs in which.
test: lint
	pytest -q -n 2 --dist loadgroup --no-loadscope-reorder

lint: $(READY)
	ruff check .
	ruff format --check .
	pyright
	lint-imports

format: $(READY)
	ruff format .
	ruff check --fix .

# Installs again only when the requirements change. One command, so that pip sees all pins at once.
$(READY): pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	touch $@

# Writes down what is installed now, after a deliberate upgrade and a green `make test`.
constraints: $(READY)
	{ sed -n '/^#/p' constraints.txt; python -m pip freeze --exclude-editable; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf build dist .pytest_cache .ruff_cache .import_linter_cache
