.PHONY: check format lint types floors schemas test slow

check: lint types floors schemas test  ## exactly what CI runs, but for the slow tests

format:
	ruff format . && ruff check --fix .

lint:
	ruff format --check . && ruff check .

types:
	mypy

floors:
	lint-imports

schemas:
	evalkit schema schemas && git diff --exit-code -- schemas

test:
	python -m pytest

slow:
	python -m pytest -m slow
