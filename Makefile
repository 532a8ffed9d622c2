# Every target makes what it needs, in a virtual environment of its own. Needs Python 3.11-3.13 and make.
PYTHON ?= python3
VENV ?= .venv
ORACLES := 5.23.0 4.57.6 4.49.0
CONSTRAIN := -c constraints.txt
PARALLEL ?= -n auto --dist loadfile
RUN := $(VENV)/bin/python -m

SEED ?= 0
.PHONY: help install test slow browser check fix oracle golden lowest demo base plan lock clean

help:  ## Lists the targets.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed  ## Installs the package, its tests and checks.

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check $(CONSTRAIN) -e '.[test,check]'
	touch $@

test: install  ## Runs the suite (about 20 minutes on 2 cores).
	$(RUN) pytest $(PARALLEL) -m 'not slow and not oracle and not browser and not plan'

slow: install  ## Runs the long property tests.
	$(RUN) pytest $(PARALLEL) -m 'slow and not oracle and not browser and not plan'

browser: install  ## Opens reports in headless Chromium (on Debian: apt install chromium).
	$(RUN) pip install --quiet --disable-pip-version-check $(CONSTRAIN) -e '.[browser]'
	$(RUN) pytest -m browser

check: install static test  ## Format, lint, types, layers, tests.

.PHONY: static
static: install
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/lint-imports

fix: install  ## Formats and repairs what can be repaired.
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

# torch first: a version that is there already is not replaced by a larger build.
.venv-oracle-%/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-oracle-$*
	.venv-oracle-$*/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-oracle-$*/bin/python -m pip install --quiet --disable-pip-version-check -e '.[oracle]' transformers==$*
	.venv-oracle-$*/bin/python -m pip download --quiet --no-deps --dest .cache dashscope==2.0.2  # the Qwen ranks
	touch $@

oracle-%: .venv-oracle-%/.installed
	.venv-oracle-$*/bin/python -m pytest tests/oracle

oracle: $(ORACLES:%=oracle-%)  ## Compares with torch and several versions of transformers.

golden: .venv-oracle-5.23.0/.installed  ## Makes the golden files again.
	.venv-oracle-5.23.0/bin/python -m tests.golden.make

.venv-lowest/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --resolution lowest-direct -e '.[test]'
	touch $@

lowest: .venv-lowest/.installed  ## Runs the suite with the lowest versions that pyproject.toml allows.
	.venv-lowest/bin/python -m pytest $(PARALLEL) -m 'not slow and not oracle and not browser and not plan'

demo: install  ## Runs the whole curriculum with the small model in the world of shapes, and its report (minutes on a laptop).
	$(RUN) currreft_jax.train --config=configs/curriculum.py:tiny --workdir=runs/demo
	$(RUN) currreft_jax.report runs/demo

base: install  ## Trains the base that ships with the world, or another: make base SEED=1.
	test -e runs/world-$(SEED)/world.json || $(RUN) currreft_jax.dataset build world --seed $(SEED) --out runs/world-$(SEED)
	$(RUN) currreft_jax.train --config=configs/world_base.py:$(SEED)
	$(RUN) benchmarks.world_base --world runs/world-$(SEED) --model runs/world_base-$(SEED)/questions/model

.venv-plan/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-plan
	.venv-plan/bin/python -m pip install --quiet --disable-pip-version-check $(CONSTRAIN) -e '.[test,cuda12,tpu]'
	touch $@

# XLA compiles with the settings of the launch files. The 7B has 16 data shards there, and a prompt for each.
plan: .venv-plan/.installed  ## Compiles the paper's settings for GPUs and TPUs that are not here (an hour or two, 8 GB of disk).
	mkdir -p runs/plan
	. launch/env_gpu.sh; unset JAX_COMPILATION_CACHE_DIR; \
	for it in 3b:a800:1x8 7b:a800:2x8 3b:v5e:2x4 3b:v5p:2x2x2 3b:v6e:2x4; do \
		model=$${it%%:*}; topology=$${it#*:}; batch=$$(test $$model = 7b && echo 16 || echo 8); \
		.venv-plan/bin/python -m currreft_jax.plan --config=configs/stage3.py:$$model --topology=$$topology \
			--config.data.batch_size=$$batch | tee runs/plan/$$model-$$(echo $$topology | tr : -).txt; \
	done
	.venv-plan/bin/python -m pytest -m plan tests/test_plan_compilers.py

lock: install  ## Resolves constraints.txt again, for all supported Pythons.
	$(RUN) pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
		--extra test --extra check --extra browser pyproject.toml -o constraints.txt

clean:  ## Removes the environments and caches.
	rm -rf .venv .venv-* .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
