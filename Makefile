# Every target sets up its own virtual environment. Needs Python 3.11-3.13 and make.
PYTHON ?= python3
VENV ?= .venv
ORACLES := 5.23.0 4.57.6 4.49.0
VLMEVAL_ms := 0.0.20
VLMEVAL_nvidia := 26.3
CONSTRAIN := -c constraints.txt
# Files in their order: by default those of few tests come last, which are the longest.
PARALLEL ?= -n auto --dist loadfile --no-loadscope-reorder
RUN := $(VENV)/bin/python -m

SEED ?= 0
SEEDS ?= 5
RUNS ?= runs/paper
# Tests that need more than the package have targets of their own: oracle, browser, plan.
SUITE := not oracle and not browser and not plan
QUICK := not slow and $(SUITE)
.PHONY: help install test test-all browser check static fix oracle oracle-rewards oracle-vlmeval golden lowest demo paper base plan lock clean

help:  ## Lists the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed  ## Installs the package and the tools of its tests and checks.

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check $(CONSTRAIN) -e '.[test,check]'
	touch $@

test: install  ## Runs the quick suite (at most 8 minutes on two idle cores).
	$(RUN) pytest $(PARALLEL) -m '$(QUICK)'

test-all: install  ## Runs the quick and the long tests.
	$(RUN) pytest $(PARALLEL) -m '$(SUITE)'

browser: install  ## Tests reports in headless Chromium (on Debian: apt install chromium).
	$(RUN) pip install --quiet --disable-pip-version-check $(CONSTRAIN) -e '.[browser]'
	$(RUN) pytest -m browser

check: install static test-all  ## Runs the static checks, then test-all.

static: install  ## Checks format, lint, types and layers.
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/lint-imports

fix: install  ## Formats the code, and applies the linter's fixes.
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

# torch first: pip keeps an installed version, and would otherwise choose a larger build.
.venv-oracle-%/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-oracle-$*
	.venv-oracle-$*/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-oracle-$*/bin/python -m pip install --quiet --disable-pip-version-check -e '.[oracle]' transformers==$*
	.venv-oracle-$*/bin/python -m pip download --quiet --no-deps --dest .cache dashscope==2.0.2  # Qwen's tokenizer ranks
	touch $@

oracle-%: .venv-oracle-%/.installed
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 .venv-oracle-$*/bin/python -m pytest tests/oracle

# Of VLMEvalKit's wheels the rules and the client are used, without the dependencies of the package.
.venv-vlmeval-%/.installed: Makefile
	$(PYTHON) -m venv .venv-vlmeval-$*
	.venv-vlmeval-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $*-vlmeval==$(VLMEVAL_$*)
	.venv-vlmeval-$*/bin/python -m pip install --quiet --disable-pip-version-check pandas pillow validators \
		huggingface_hub sty tqdm python-dotenv tabulate portalocker rich openpyxl xlsxwriter json_repair requests \
		matplotlib
	touch $@

oracle-vlmeval: install .venv-vlmeval-ms/.installed .venv-vlmeval-nvidia/.installed  ## Compares scores, and asks the server by its client.
	$(RUN) pytest -m oracle tests/evaluation/benchmarks tests/serving

oracle-rewards: install  ## Scores more rows and texts than the suite, and compares more verdicts with math-verify's.
	$(RUN) pytest $(PARALLEL) -m oracle tests/rewards

oracle: $(ORACLES:%=oracle-%) oracle-rewards oracle-vlmeval  ## Compares with torch, three versions of transformers, math-verify and VLMEvalKit.

golden: .venv-oracle-5.23.0/.installed  ## Regenerates the golden files.
	.venv-oracle-5.23.0/bin/python -m tests.golden.make

.venv-lowest/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --resolution lowest-direct -e '.[test]'
	touch $@

lowest: .venv-lowest/.installed  ## Runs the quick suite with the lowest versions that pyproject.toml allows.
	.venv-lowest/bin/python -m pytest $(PARALLEL) -m '$(QUICK)'

demo: install  ## Trains the small model through the curriculum and self-improvement, and writes the report (minutes on a laptop).
	$(RUN) currreft_jax.train --config=configs/curriculum.py:tiny --workdir=runs/demo
	$(RUN) currreft_jax.report runs/demo

paper: install  ## Compares all methods and judges the paper's claims (hours); a quick look: make paper SEEDS=1.
	$(RUN) benchmarks.paper --seeds $(SEEDS) --runs $(RUNS) --out docs/miniature.md

base: install  ## Trains the small model from scratch; another world and model: make base SEED=1.
	test -e runs/world-$(SEED)/world.json || $(RUN) currreft_jax.dataset build world --seed $(SEED) --out runs/world-$(SEED)
	$(RUN) currreft_jax.train --config=configs/world_base.py:$(SEED)
	$(RUN) benchmarks.world_base --world runs/world-$(SEED) --model runs/world_base-$(SEED)/answers/model

.venv-plan/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-plan
	.venv-plan/bin/python -m pip install --quiet --disable-pip-version-check $(CONSTRAIN) -e '.[test,cuda12,tpu]'
	touch $@

# Compiles with the XLA flags of the launch files.
plan: .venv-plan/.installed  ## Plans the paper's settings on GPUs and TPUs, without them (an hour or two, 8 GB of disk).
	mkdir -p runs/plan
	. launch/env_gpu.sh; unset JAX_COMPILATION_CACHE_DIR; \
	for setting in 3b:a800:1x8 7b:a800:2x8 3b:v5e:2x4 3b:v5p:2x2x2 3b:v6e:2x4; do \
		model=$${setting%%:*}; topology=$${setting#*:}; \
		.venv-plan/bin/python -m currreft_jax.plan --config=configs/curriculum.py:$$model --topology=$$topology \
			| tee runs/plan/$$model-$$(echo $$topology | tr : -).txt; \
	done
	.venv-plan/bin/python -m pytest -m plan tests/test_plan_compilers.py

lock: install  ## Resolves constraints.txt anew, for all supported Pythons.
	$(RUN) pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
		--extra test --extra check --extra browser pyproject.toml -o constraints.txt

clean:  ## Removes the environments and caches.
	rm -rf .venv .venv-* .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
