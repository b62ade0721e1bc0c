# make demo: train a small Llama with AdamW and with the SAGE hybrid, and compare them.
# make test: build everything, run the C++ and the Python tests.
# Both set up .venv on their first run and are quick after that. Neither needs anything but Python 3.10 or
# newer with venv, a C++20 compiler and CMake.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without a GPU the CPU build of torch is enough; with one, the newest CUDA build.
HAS_GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)
ifeq ($(HAS_GPU),0)
TORCH ?= torch==2.13.0
else
TORCH ?= torch
endif

SOURCES := $(shell find csrc sage_ext -type f -not -name '*.so' -not -path '*/__pycache__/*') setup.py pyproject.toml README.md
CMAKE_FLAGS := -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja)
export HF_HUB_OFFLINE := 1

.PHONY: demo test test-python test-cpp test-cpp-sanitized benchmark lint clean

demo: $(VENV)/.installed $(VENV)/.examples
	$(BIN)/python examples/train_llama.py demo

test: test-cpp test-python

test-python: $(VENV)/.installed $(VENV)/.examples $(VENV)/.tools
	$(BIN)/pytest

test-cpp: build/cpp/.built
	ctest --test-dir build/cpp --output-on-failure -j 2

# The C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer.
test-cpp-sanitized: build/cpp-sanitized/.built
	ctest --test-dir build/cpp-sanitized --output-on-failure -j 2

benchmark: $(VENV)/.installed $(VENV)/.examples
	$(BIN)/python benchmarks/step_time.py --json benchmarks/results/step_time.json
	$(BIN)/python benchmarks/memory.py --json benchmarks/results/memory.json

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files '*.h' '*.cpp' '*.inl' | xargs $(BIN)/clang-format --dry-run --Werror

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)' 'setuptools>=77' wheel ninja numpy
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps .
	cd $(VENV) && bin/python -m sage_ext
	touch $@

# Everything from here on leaves torch as it is: a range that the installed version satisfies installs nothing.
$(VENV)/.examples: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check 'transformers>=4.44' 'tokenizers>=0.19' 'tqdm>=4.66' 'matplotlib>=3.8'
	touch $@

$(VENV)/.tools: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check 'pytest>=8' 'hypothesis>=6.100'
	touch $@

$(VENV)/.lint: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check ruff==0.17.6 clang-format==23.1.5
	touch $@

CPP_SOURCES := $(shell find csrc/core csrc/cpu tests/cpp -type f) csrc/sources.txt CMakeLists.txt

# gtest: Debian's package where we may install it, else CMake fetches it.
$(VENV)/.gtest: | $(VENV)/.torch
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && ! dpkg -s libgtest-dev >/dev/null 2>&1; then \
	  apt-get update -qq && apt-get install -y -qq libgtest-dev; \
	fi
	touch $@

# ninja comes with the venv, so that a bare machine needs CMake and a compiler only.
build/cpp/.built: $(CPP_SOURCES) | $(VENV)/.gtest
	cmake -S . -B build/cpp $(CMAKE_FLAGS)
	cmake --build build/cpp
	touch $@

build/cpp-sanitized/.built: $(CPP_SOURCES) | $(VENV)/.gtest
	cmake -S . -B build/cpp-sanitized $(CMAKE_FLAGS) -DSAGE_EXT_SANITIZE=ON
	cmake --build build/cpp-sanitized
	touch $@

clean:
	rm -rf build dist demo_out *.egg-info $(VENV)
