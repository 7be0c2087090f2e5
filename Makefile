# Two commands from a fresh clone: make demo, make test.
PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: install demo test test-all lint reference bench clean

$(INSTALLED): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[dev]'
	touch $@

install: $(INSTALLED)

demo: install
	$(BIN)/lmkit demo --overwrite

# the unit and contract tests and the real command end to end: minutes on two cores
test: install
	$(BIN)/python -m pytest -m 'not slow'

# with the proofs that take longer
test-all: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the recipe reference in docs/ is made from the schema
reference: install
	$(BIN)/python docs/make_reference.py

# lmkit beside transformers.Trainer: hours in all, minutes with BENCH=startup; the machine should do nothing else. BENCH is one of
# mlm clm classification ner translation eval generate startup tokenize time growth gpu, or several with commas
bench: install
	$(BIN)/python tests/bench/speed.py

clean:
	rm -rf $(VENV) runs build dist
