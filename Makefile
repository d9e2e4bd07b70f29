# What a developer does, each by one word. The environment is .venv, made by `make install`.
# `make PYTHON=python3.13 install` takes another Python.
PYTHON ?= python3
# The least share of lines outside compiled kernels that `make coverage` accepts, in percent.
COVERAGE ?= 80

.PHONY: help install check test coverage release clean

help:
	@echo "make install   an environment with q4run, editable, and the tools; the git hooks"
	@echo "make check     formatting, style, types, and that pages show what was measured"
	@echo "make test      the ordinary tests; ARGS='tests/text -x' for some of them"
	@echo "make coverage  the same, and which lines they run; fails below $(COVERAGE) %"
	@echo "make release   dist/: source and wheel, checked, installed and tried from nothing"
	@echo "make clean     without what the others made; .venv and compiled kernels stay"

install: .venv/installed
	@if git rev-parse --git-dir >/dev/null 2>&1; then .venv/bin/pre-commit install; fi

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -e '.[dev]'
	touch $@

check: .venv/installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.ci/types
	.venv/bin/python -m q4run.bench.pages.report --check

test: .venv/installed
	.venv/bin/pytest -n 2 $(ARGS)

coverage: .venv/installed
	.venv/bin/coverage erase
	.venv/bin/coverage run -m pytest $(ARGS)
	.venv/bin/coverage combine --quiet
	.venv/bin/coverage report --fail-under=$(COVERAGE)

release: .venv/installed
	.ci/release

clean:
	rm -rf build dist *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache
