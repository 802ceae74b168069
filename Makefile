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

test:  ## on every core; a file's tests stay together
	OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile

slow:
	python -m pytest -m slow
