# make demo    train, forget 10 % of the embedded images, compare with retraining; writes amun-demo/report.html
# make test    all tests
# make lint    ruff, mypy, clang-format
# make bench   the benchmarks, and the tables in benchmarks/README.md
#
# Each does its own set-up: a virtual environment in .venv with torch and the built extension. With
# `make PYTHON=...` an interpreter that already imports torch is used as it is, and nothing is installed into it.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VISION ?= torchvision==0.28.0
OUT ?= amun-demo

ifneq ($(origin PYTHON),file)
  AS_IT_IS := $(shell $(PYTHON) -c 'import torch' 2>/dev/null && echo yes)
endif

ifeq ($(AS_IT_IS),yes)
  RUN := PYTHONPATH=$(CURDIR) $(PYTHON)
else
  RUN := .venv/bin/python
  READY := .venv/ready
endif

EXTENSION := amun_ext/_C.abi3.so
SOURCES := setup.py $(shell find csrc -type f)

.PHONY: demo test lint bench build clean
build: $(EXTENSION)

demo: build
	$(RUN) -m amun_ext.cli demo --out $(OUT)

test: build
	$(RUN) -m pytest $(ARGS)

lint: build
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m clang_format --dry-run --Werror $$(find csrc python_tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

bench: build
	$(RUN) benchmarks/run.py $(ARGS)

# torchvision without its dependencies: from PyPI it asks for a CUDA build of torch, and only its readers are used.
.venv/ready: pyproject.toml Makefile
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --upgrade pip
	.venv/bin/pip install --quiet "$(TORCH)"
	.venv/bin/pip install --quiet ninja "setuptools>=77" wheel
	USE_NINJA=1 .venv/bin/pip install --quiet --no-build-isolation -e ".[test,lint]"
	.venv/bin/pip install --quiet --no-deps "$(VISION)" && .venv/bin/pip install --quiet pillow
	touch .venv/ready

$(EXTENSION): $(SOURCES) $(READY)
	$(RUN) setup.py --quiet build_ext --inplace
	touch $(EXTENSION)

clean:
	rm -rf .venv build dist *.egg-info amun_ext/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
