# `make demo` is the place to start. Every target makes .venv and installs what is missing first;
# once that is done, a stamp file says so and the next call starts at once.
#
#   make demo         compare small students of a teacher on generated images
#   make test         run the tests
#   make faults       kill, damage, signal and starve trainings, and compare what they come to: see
#                     docs/architecture.md; less than 20 minutes on two cores
#   make fuzz         give the commands odd inputs: configs, COCO JSON, images, suites, predict's
#   make lint         check style; `make format` mends what can be mended by a tool
#   make docs         build the site of docs/ into site/; broken links and anchors fail
#   make wheelhouse   wheels of all but torch, torchvision and their needs, for a machine without
#                     a network: there, `pip install --no-index --find-links wheelhouse detectron2`
#   make clean        remove .venv, the wheelhouse and caches; trainings and datasets stay
#
# Variables: PYTHON, the interpreter that makes .venv (default python3); JOBS, processes for the
# tests; PYTHON_VERSION, the Python of the machine that the wheelhouse is for (default that of
# .venv); WHEELS, the packages to keep there (default all that is needed; give names only).

PYTHON ?= python3
JOBS ?= 2
PYTHON_VERSION ?=
WHEELS ?=

VENV_PYTHON := .venv/bin/python
STAMP := .venv/.installed

.PHONY: demo test faults fuzz lint format docs wheelhouse clean

demo: $(STAMP)
	$(VENV_PYTHON) tools/compare.py configs/compare/demo.yaml

# One thread a process: several processes of many threads each only wait for one another.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n $(JOBS) --dist worksteal

faults: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n $(JOBS) --dist worksteal --whole tests/faults

fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) tests/fuzz/run.py --workers $(JOBS)

lint: $(STAMP)
	$(VENV_PYTHON) -m ruff check
	$(VENV_PYTHON) -m ruff format --check

format: $(STAMP)
	$(VENV_PYTHON) -m ruff check --fix
	$(VENV_PYTHON) -m ruff format

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs build --quiet --strict
	@echo "The site is site/start.html."

wheelhouse: $(STAMP)
	rm -rf wheelhouse
	$(VENV_PYTHON) tools/wheelhouse.py wheelhouse \
		$(if $(PYTHON_VERSION),--python-version $(PYTHON_VERSION)) $(if $(WHEELS),--only $(WHEELS))

clean:
	rm -rf .venv wheelhouse build dist site *.egg-info .pytest_cache .ruff_cache
	find dpk_det tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an install that was broken off is taken up again. pip is what
# `venv` puts in place last, so a .venv without it was broken off too.
$(STAMP): setup.py tools/install_detectron2.py
	@$(VENV_PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(VENV_PYTHON) -m pip install --quiet --editable '.[dev]'
	$(VENV_PYTHON) tools/install_detectron2.py
	@touch $@
