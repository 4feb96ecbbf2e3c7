# make demo    train, forget 10 % of the embedded images, compare with retraining; writes amun-demo/report.html
# make test    the tests, but for those that build, kill or rehearse whole programs (ARGS=... goes to pytest)
# make test-all    those too (ARGS=--cov=amun_ext adds a coverage figure)
# make lint    ruff, mypy, clang-format
# make docs    the documentation, into site/; a warning is an error
# make bench   the benchmarks and their tables in docs/benchmarks (ARGS=... names some)
# make release VERSION=X.Y.Z    cuts the changelog, builds sdist and wheel into dist/, tests both in fresh environments
#
# Each does its own set-up: a virtual environment in .venv with torch and the built extension. With
# `make PYTHON=...` an interpreter that already imports torch is used as it is, and nothing is installed into it.
# TORCH="torch==2.13.0 --index-url ..." chooses another build of torch for .venv.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VISION ?= torchvision==0.28.0
OUT ?= amun-demo

ifneq ($(origin PYTHON),file)
  ifneq ($(shell $(PYTHON) -c 'print("runs")' 2>/dev/null),runs)
    $(error PYTHON must be an interpreter that runs, got $(PYTHON))
  endif
  AS_IT_IS := $(shell $(PYTHON) -c 'import torch' 2>/dev/null && echo yes)
endif

ifeq ($(AS_IT_IS),yes)
  RUN := PYTHONPATH=$(CURDIR) $(PYTHON)
  READY := complete
  CLANG_FORMAT := clang-format
else
  RUN := .venv/bin/python
  READY := .venv/ready
  CLANG_FORMAT := .venv/bin/clang-format
endif

EXTENSION := amun_ext/_C.abi3.so
NATIVE := $(shell find csrc python_tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test test-all lint format docs bench release build complete clean

demo: build
	$(RUN) -m amun_ext demo --out $(OUT)

# A worker for each core. Whoever is done takes over what another has not begun: tests of a module mostly stay together.
PYTEST := -m pytest -n auto --maxprocesses 8 --dist worksteal

test: build
	$(RUN) $(PYTEST) -m "not slow" $(ARGS)

test-all: build
	$(RUN) $(PYTEST) $(ARGS)

lint: build
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(CLANG_FORMAT) --dry-run --Werror $(NATIVE)

format: build
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(CLANG_FORMAT) -i $(NATIVE)

docs: build
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict
	@echo "wrote site/index.html"

bench: build
	PYTHONPATH=$(CURDIR) $(RUN) benchmarks/run.py $(ARGS)

release: build
	bash .ci/release $(VERSION)

# In a make of its own, which looks at the files anew: setting up .venv builds the extension too.
build: $(READY)
	@$(MAKE) --no-print-directory $(EXTENSION)

$(EXTENSION): setup.py $(shell find csrc -type f)
	@mkdir -p build && echo "building the extension (build/log)"
	@$(RUN) setup.py --quiet build_ext --inplace >build/log 2>&1 || (cat build/log && false)
	@touch $(EXTENSION)

# torchvision without its dependencies: it would ask for one exact build of torch, and only its readers are used.
.venv/ready: pyproject.toml Makefile
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet $(TORCH)
	.venv/bin/python -m pip install --quiet "setuptools>=77" wheel ninja
	.venv/bin/python -m pip install --quiet --no-build-isolation --editable ".[test,lint,docs]"
	.venv/bin/python -m pip install --quiet --no-deps $(VISION)
	.venv/bin/python -m pip install --quiet pillow
	touch .venv/ready

# What is used as it is must have what is needed; it is not changed.
complete:
	@$(PYTHON) -c 'import sys, importlib.util as u; \
	  needed = "numpy safetensors tqdm sklearn matplotlib setuptools ninja pytest xdist hypothesis optuna torchvision PIL".split(); \
	  missing = [name for name in needed if not u.find_spec(name)]; \
	  missing and sys.exit(f"{sys.executable} lacks {missing}: pip install them, or leave PYTHON= out")'

clean:
	rm -rf .venv build dist site *.egg-info amun_ext/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
