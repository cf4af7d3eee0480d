# Two commands: `make demo` runs the main job, `make test` the tests. Both set up what they need, once, in .venv.
PYTHON ?= python3
BIN    := .venv/bin
PIP    := $(BIN)/pip install --disable-pip-version-check -c constraints.txt

.PHONY: demo test coverage parity lint format types docs clean

demo: .venv/ready
	$(BIN)/sensorium demo --out demo

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto

coverage: .venv/ready-to-test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --cov --cov-report=term --cov-report=html

parity: .parity/ready
	.parity/bin/python -m pytest tests/parity

lint: .venv/ready-to-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/ready-to-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/ready-to-test
	$(BIN)/pyright

docs: .venv/ready-to-test
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv .parity demo htmlcov

.venv/bin/pip:
	@echo "Making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

.venv/ready: .venv/bin/pip constraints.txt pyproject.toml
	@echo "Installing Sensorium and what it needs into .venv (about a gigabyte, a minute or two)"
	$(PIP) -e .
	touch $@

.venv/ready-to-test: .venv/ready
	@echo "Installing what the tests need"
	$(PIP) -e ".[dev]"
	touch $@

.parity/ready: benchmarks/requirements.txt
	@echo "Installing open_clip, timm and torchvision into .parity, without CUDA"
	$(PYTHON) -m venv .parity
	.parity/bin/pip install --disable-pip-version-check -r benchmarks/requirements.txt pytest beartype
	.parity/bin/pip install --disable-pip-version-check --no-deps open_clip_torch==3.3.0 timm==1.0.31 torchvision==0.28.0
	.parity/bin/pip install --disable-pip-version-check --no-deps -e .
	touch $@
