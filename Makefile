# make demo and make test do the whole set-up first: nothing but Python 3.11 to 3.13 and make has to be there.
.PHONY: install demo test test-slow lint format lock clean

# Tried in this order; name one with make PYTHON=/path/to/python.
PYTHON ?= python3.11 python3.12 python3.13 python3
PIP = .venv/bin/python -m pip --quiet --quiet --disable-pip-version-check

# Run and not only looked up: version managers leave names on the PATH that start nothing.
USABLE = import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))

install: .venv/installed

.venv/bin/python:
	@for python in $(PYTHON); do \
	  if $$python -c '$(USABLE)' >/dev/null 2>&1; then exec $$python -m venv .venv; fi; \
	done; \
	echo "make: none of [$(PYTHON)] is Python 3.11, 3.12 or 3.13 with its venv module: install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
	exit 1

# No build isolation: the lock pins the setuptools that builds the project, too.
.venv/installed: requirements.lock pyproject.toml | .venv/bin/python
	@echo "Installing the locked packages into .venv (3.4 GB; one to two minutes, once)"
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# Running it again resumes, so a finished demo only rebuilds its page.
demo: install
	@.venv/bin/python -m jaxclip.main --config=configs/quickstart.py --workdir=runs/quickstart

test: install
	@.venv/bin/python -m pytest -m "not slow and not peer and not gpu"

test-slow: install
	@.venv/bin/python -m pytest -m "slow and not peer and not gpu"

lint: install
	@.venv/bin/ruff check --quiet .
	@.venv/bin/ruff format --quiet --check .
	@.venv/bin/mypy --no-error-summary jaxclip

format: install
	@.venv/bin/ruff check --quiet --fix .
	@.venv/bin/ruff format --quiet .

# Keeps the locked versions that still fit pyproject.toml; remove the file first to take the newest of everything.
lock: .venv/bin/python
	@$(PIP) install uv
	@.venv/bin/uv pip compile --quiet --universal --generate-hashes --extra test \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	  pyproject.toml -o requirements.lock

# What runs have written under runs/ stays.
clean:
	@rm -rf .venv build jaxclip.egg-info .mypy_cache .pytest_cache .ruff_cache
