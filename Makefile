# Every target builds the project's own .venv first; nothing else needs to be installed or activated.
PYTHON ?= python3
PIP_FLAGS ?=
FRESH ?= 0
BIN := .venv/bin
OUT := book/_build/html

.DEFAULT_GOAL := help
.PHONY: help lab book check-book pdf serve test smoke lint models notebooks gpu peer-llama clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.extra-%: pyproject.toml constraints-cpu.txt | $(BIN)/python
	$(BIN)/python -m pip install -q $(PIP_FLAGS) -c constraints-cpu.txt -e ".[$*]"
	@touch $@

notebooks: .venv/.extra-book $(if $(filter 1,$(FRESH)),.venv/.extra-peers) ## run the notebooks; FRESH=1 measures everything on this machine
	$(BIN)/flashspec notebooks notebooks book/notebooks $(if $(filter 1,$(FRESH)),--fresh)

book: notebooks ## install, run the notebooks, build and check the book
	$(BIN)/flashspec pages README.md
	rm -rf $(OUT)
	$(BIN)/jupyter-book build book --all -W -n --keep-going -q
	$(BIN)/python book/_ext/links.py $(OUT)
	@echo "the book is at $(OUT)/index.html"

check-book: book .venv/.extra-test ## open every page of the book in headless Chromium and check it
	FLASHSPEC_BOOK=$(OUT) $(BIN)/python -m pytest -n auto tests/test_pages.py

pdf: book ## the book as one PDF file, printed by Chromium
	$(BIN)/jupyter-book build book --builder singlehtml -n --keep-going -q
	cp book/_build/singlehtml/notebooks/00_start.html book/_build/singlehtml/index.html
	chromium --headless --no-sandbox --no-pdf-header-footer --virtual-time-budget=60000 \
		--print-to-pdf=book/_build/flashspec.pdf "file://$(CURDIR)/book/_build/singlehtml/index.html"
	@echo "the book is at book/_build/flashspec.pdf"

serve: book ## show the book at http://localhost:8000
	$(BIN)/python -m http.server --directory $(OUT) --bind localhost 8000

lab: .venv/.extra-book .venv/.extra-lab ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

test: .venv/.extra-book .venv/.extra-test ## install and run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_FLAGS)

smoke: .venv/.extra-test ## run every experiment at its smallest size
	$(BIN)/flashspec run --preset smoke --results .venv/smoke --fresh

lint: .venv/.extra-book .venv/.extra-test ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

models: .venv/.extra-book ## train the reference models from scratch (hours; can be stopped and resumed); FAMILY=1 the drafts' family
	$(BIN)/flashspec $(if $(filter 1,$(FAMILY)),draft family,train)

gpu: ## true shapes on a CUDA device, resumable, after the tests that need one, with the Python at hand (its extras book and test)
	$(PYTHON) -m pytest -q -m gpu tests/test_captured.py tests/test_awq.py
	$(PYTHON) -m flashspec.cli.main run real_shapes $(GPU_FLAGS)

peer-llama: ## build llama.cpp (its Python wheel, from source) into .venv-llama, for races beside it
	$(PYTHON) -m venv .venv-llama
	CMAKE_ARGS="-DGGML_NATIVE=ON" .venv-llama/bin/python -m pip install -q --no-binary llama-cpp-python llama-cpp-python

clean: ## remove what was built; stored results, models and .venv stay
	rm -rf book/_build book/notebooks build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find flashspec tests -name __pycache__ -type d -prune -exec rm -rf {} +
