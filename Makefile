# `make demo` and `make test` are all there is to know. Each first makes its own virtual environment in .venv
# (no root, no network but the package index) and makes it again only when the project's metadata or C changes.
# PYTHON=/path/to/python3.12 chooses the interpreter.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
SOURCES := pyproject.toml setup.py $(wildcard csrc/* csrc/*/*)
EXTRAS := demo,test
# The package as it is installed, kernels in their place: mypy does not follow setup.py's package_dir.
TYPED := build/typed

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The test processes share the processors, so each uses one.
PYTEST := FPGASIM_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: demo test test-quick test-rtl test-clients test-extras extras test-oracles oracles test-torch torch test-sanitize test-fuzz lint clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo "make demo           classify a photograph on the emulated FPGA, then plan and time ResNet-50"
	@echo "make test           lint, types and all tests"
	@echo "make test-quick     the tests that take less than five seconds each"
	@echo "make test-rtl       every core and network against our own RTL, with Verilator: values and cycles (needs g++)"
	@echo "make test-clients   clients in other languages and of other projects on a server (needs Debian's Go, Node, skopeo, …)"
	@echo "make test-oracles   formats against other emulators, which need PyTorch: in .venv-oracles, 2 GB"
	@echo "make test-extras    conversion of TensorFlow models and the MLflow registry: in .venv-extras, 2 GB"
	@echo "make test-torch     export and quantization-aware training with PyTorch: in .venv-torch, 1.5 GB (6 with CUDA)"
	@echo "make test-sanitize  the native kernels under the address and undefined-behaviour sanitizers"
	@echo "make test-fuzz      random shapes through every backend; EXAMPLES=20000 sets how many"
	@echo "make lint           ruff and mypy"
	@echo "make clean          remove what was built, the virtual environment included"

demo: $(READY)
	$(BIN)/fpgasim demo

test: lint
	$(PYTEST)

test-quick: $(READY)
	$(PYTEST) -m "not slow"

test-rtl: $(READY)
	$(PYTEST) tests/rtl/full

# Clients that others wrote and those in other languages, each with what it needs, stay out of .venv.
CLIENTS := .venv-clients
CLIENT_TOOLS := bwrap go node npm protoc protoc-gen-go runc skopeo umoci
CLIENT_SOURCES := tests/clients/install.sh $(wildcard docs/examples/clients/*/* fpgasim/service/protos/*.proto)
test-clients: $(READY)
	@export PATH="$$PATH:/usr/sbin:/sbin"; missing=; \
	for tool in $(CLIENT_TOOLS); do command -v $$tool > /dev/null || missing="$$missing $$tool"; done; \
	test -d /usr/share/gocode/src/google.golang.org/grpc || missing="$$missing golang-google-grpc-dev"; \
	if [ -n "$$missing" ]; then \
	  echo "make test-clients needs$$missing; as root, .ci/debian-tools installs all it needs from Debian." >&2; exit 1; \
	fi
	$(MAKE) $(CLIENTS)/.installed
	PATH="$$PATH:/usr/sbin:/sbin" FPGASIM_CLIENTS=$(CLIENTS) FPGASIM_NUM_THREADS=1 $(BIN)/python -m pytest tests/clients

$(CLIENTS)/.installed: $(CLIENT_SOURCES)
	tests/clients/install.sh $(CLIENTS) $(BIN)/python
	@touch $@

# PyTorch stays out of .venv. PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu chooses its build without CUDA.
test-oracles:
	$(MAKE) oracles VENV=.venv-oracles EXTRAS=oracles

oracles: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests/oracles

test-extras:
	$(MAKE) extras VENV=.venv-extras EXTRAS=mlflow,tensorflow

extras: $(READY)
	$(BIN)/python -m pip install --quiet 'pytest>=8'
	FPGASIM_NUM_THREADS=1 $(BIN)/python -m pytest tests/extras

test-torch:
	$(MAKE) torch VENV=.venv-torch EXTRAS=torch

torch: $(READY)
	$(BIN)/python -m pip install --quiet 'pytest>=8'
	FPGASIM_NUM_THREADS=1 $(BIN)/python -m pytest tests/torch

# A copy of the package, its C compiled with the sanitizers, is found before the installed one. Python's own allocator
# would hide errors from them; what Python leaks at exit is not ours.
SANITIZED := build/sanitized
test-sanitize: $(READY)
	@rm -rf $(SANITIZED) && mkdir -p $(SANITIZED) && printf '[build]\nbuild_base = $(SANITIZED)/objects\n' > $(SANITIZED)/setup.cfg
	DIST_EXTRA_CONFIG=$(SANITIZED)/setup.cfg CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -g" \
	  $(BIN)/python -m pip install --quiet --no-deps --target $(SANITIZED)/lib .
	env LD_PRELOAD="$$($${CC:-gcc} -print-file-name=libasan.so) $$($${CC:-gcc} -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc PYTHONPATH=$(SANITIZED)/lib FPGASIM_SANITIZED=1 \
	  $(BIN)/pytest tests/kernels -k "native or sanitized"

EXAMPLES := 2000
test-fuzz: $(READY)
	FPGASIM_FUZZ_EXAMPLES=$(EXAMPLES) $(PYTEST) tests/kernels -k "any_shape"

lint: $(READY)
	$(BIN)/ruff check .
	@rm -rf $(TYPED) && mkdir -p $(TYPED)/fpgasim
	@ln -s $(CURDIR)/fpgasim/* $(TYPED)/fpgasim/ && ln -sfn $(CURDIR)/kernels $(TYPED)/fpgasim/kernels
	MYPYPATH=$(TYPED) $(BIN)/mypy -p fpgasim

clean:
	rm -rf $(VENV) $(CLIENTS) .venv-extras .venv-oracles .venv-torch build dist *.egg-info kernels/_native*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): $(SOURCES) $(BIN)/python
	@echo "Installing fpgasim and what it needs into $(VENV) (a few minutes the first time)"
	$(BIN)/python -m pip install --editable '.[$(EXTRAS)]'
	@touch $@

# The given PYTHON, else the first that is new enough and can make virtual environments.
CANDIDATES := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)
$(BIN)/python:
	@for python in $(CANDIDATES); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Making $(VENV) with $$($$python --version)"; rm -rf $(VENV); exec "$$python" -m venv $(VENV); \
	  fi; \
	done; \
	echo "fpgasim needs Python 3.11 or newer with its venv module (Debian: apt install python3-venv)." >&2; \
	for python in $(CANDIDATES); do \
	  echo "  $$python: $$("$$python" --version 2>/dev/null || echo not there)" >&2; \
	done; \
	echo "PYTHON=/path/to/python make … chooses another." >&2; exit 1
