# `make run` and `make test` set up all that they need; both are quick when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help run test test-fast coverage fuzz check bench findings clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

run: $(VENV)/.installed ## Build the embedded challenge, sweep the grid, select, package, score and report
	$(BIN)/python -m mico_exp metric=loss,confidence formula=0,1,2 -m
	$(BIN)/python -m mico_exp.select_best
	$(BIN)/python -m mico_exp.score submissions/predictions_digits.zip
	$(BIN)/python -m mico_exp.report
	@echo "Look at every run with:  $(BIN)/mlflow ui"

test: $(VENV)/.installed ## Run all tests
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

test-fast: $(VENV)/.installed ## Run the tests that need no sweep, no Ray and no browser
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m "not commands"

coverage: $(VENV)/.installed ## Run all tests, and say which lines and branches they reach
	COVERAGE_FILE=$(CURDIR)/.coverage OMP_NUM_THREADS=1 $(BIN)/coverage run $(PYTEST)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

fuzz: $(VENV)/.installed ## Give every reader of files some thousand damaged ones
	OMP_NUM_THREADS=1 FUZZ_EXAMPLES=3000 $(BIN)/python -m pytest tests/test_fuzz.py

check: $(VENV)/.installed ## Lint, check formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed ## Measure what the README says about speed
	$(BIN)/python benchmarks/main_job.py
	$(BIN)/python benchmarks/selection_cost.py

findings: ## Try again what surprised us about others' packages, each in a folder of its own
	for script in findings/*.sh; do echo "$$script"; sh "$$script" || exit 1; done

clean: ## Remove what runs have written: data, runs, scores, submissions
	rm -rf data multirun mlruns mlflow.db .mlflow.db.lock submissions reports audits

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
