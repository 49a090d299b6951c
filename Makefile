# Every target sets itself up in .venv on a machine that has Python 3.11 or later and make.
PYTHON ?= python3
PIP = .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt
INPUTS = pyproject.toml constraints.txt

.PHONY: demo test test-all test-rest lint docs dist evaluation models clean

demo: .venv/.base
	.venv/bin/sagefm demo --out sagefm-demo
	@cp docs/_static/real_section.png sagefm-demo/
	@echo "  real_section.png  the same figures of a real section (docs/real_section.md)"

# Tests run in as many processes as there are cores, one thread each. A process takes whole files, whose tests share
# slides and models, and helps the others when it is done.
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist worksteal

test: .venv/.dev  # the fast tier
	$(PYTEST) -m "not slow and not process"

test-rest: .venv/.dev  # what the fast tier leaves out
	$(PYTEST) -m "slow or process"

test-all: .venv/.dev
	$(PYTEST)

lint: .venv/.dev
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/pre-commit run --all-files

docs: .venv/.doc
	.venv/bin/python -m sphinx -W --keep-going -n -b html docs docs/_build/html
	.venv/bin/python tools/check_links.py docs/_build/html

# The wheel is tried where nothing else of ours is: an environment of its own, another folder.
dist: .venv/.base
	rm -rf dist
	$(PIP) build twine
	.venv/bin/python -m build --outdir dist
	.venv/bin/python -m twine check --strict dist/*.whl dist/*.tar.gz
	$(PYTHON) -m venv dist/try
	dist/try/bin/pip install --quiet -c constraints.txt "$$(grep '^torch==' constraints.txt)" dist/*.whl
	cd dist/try && bin/sagefm --version && bin/sagefm demo --out demo

# SECTIONS is a folder of .h5ad with raw counts, coordinates and a column "donor".
evaluation: .venv/.dev
	.venv/bin/python evaluation/ablation.py $(SECTIONS)
	.venv/bin/python evaluation/imputation.py $(SECTIONS)
	.venv/bin/python evaluation/trust.py $(SECTIONS)
	.venv/bin/python evaluation/evaluate.py $(SECTIONS)
	.venv/bin/python evaluation/perturbation.py planted
	.venv/bin/python evaluation/perturbation.py paper $(SECTIONS)/CRC_16.h5ad $(SECTIONS)/her2st_G2.h5ad

# The package's models, and all that depends on them.
models: .venv/.doc
	rm -rf build
	cd docs/evaluation && rm -f predictors.csv predictors_nano.csv reliability.csv nulls.csv missingness.csv
	.venv/bin/python evaluation/left_out.py $(SECTIONS)
	.venv/bin/python evaluation/left_out.py $(SECTIONS) --recipe nano
	.venv/bin/python evaluation/imputation.py $(SECTIONS)
	.venv/bin/python evaluation/imputation.py $(SECTIONS) --recipe nano
	.venv/bin/python evaluation/train_models.py $(SECTIONS)
	.venv/bin/python evaluation/trust.py $(SECTIONS) --write
	.venv/bin/python evaluation/trust.py $(SECTIONS)
	.venv/bin/python evaluation/real_section.py $(SECTIONS)
	.venv/bin/sagefm demo --out sagefm-demo
	.venv/bin/python tools/figures.py sagefm-demo docs/_static
	.venv/bin/python tools/run_tutorials.py

# torch first: pip then keeps this build for everything that asks for torch.
.venv/.base: $(INPUTS)
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo "Installing sagefm into .venv (several minutes the first time)"
	$(PIP) "pip>=25.1"  # the first with dependency groups
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e .
	touch $@

.venv/.dev: .venv/.base
	$(PIP) -e '.[histology,train]' --group dev
	touch $@

.venv/.doc: .venv/.base
	$(PIP) -e '.[histology,train]' --group doc
	touch $@

clean:
	rm -rf .venv dist docs/_build docs/api/generated docs/generated docs/tutorials sagefm-demo
