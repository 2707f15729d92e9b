# make demo: both training stages on real digits, samples and their evaluation.   make test: what guards the code, in under 15 minutes; make test-slow: the rest.
# make demo-text, -inpaint, -sr, -layout, -semantic, -rdm, -unconditional: one conditioning task each on the shapes world, measured.
# Each makes its own virtual environment first; all they need is a Python >= 3.11.

.DELETE_ON_ERROR:
.PHONY: demo test test-slow test-latest lint clean

RUNS ?= runs/demo
SHAPES ?= runs/shapes
SAMPLES ?= samples
PIP_QUIET := --quiet --disable-pip-version-check
ACCEPTS = $(1) -c 'import sys, venv; sys.exit(sys.version_info < (3, $(2)))' >/dev/null 2>&1
NEWEST := python3.14 python3.13 python3.12 $(shell ls -d $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python 2>/dev/null | sort -rV)

# The first Python that is new enough, python3 before the others.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	if $(call ACCEPTS,$$p,11); then echo $$p; break; fi; done)
LATEST ?= $(shell for p in $(NEWEST); do if $(call ACCEPTS,$$p,12); then echo $$p; break; fi; done)

.venv/run: requirements.txt requirements.lock
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found; name one: make PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install $(PIP_QUIET) -r requirements.txt -c requirements.lock
	touch $@

.venv/test: .venv/run requirements-dev.txt
	.venv/bin/python -m pip install $(PIP_QUIET) -r requirements-dev.txt -c requirements.lock
	touch $@

.venv-latest/test: requirements.txt requirements.lock
	$(LATEST) -m venv .venv-latest
	.venv-latest/bin/python -m pip install $(PIP_QUIET) -r requirements.txt pytest -c requirements.lock
	touch $@

demo: .venv/run
	.venv/bin/python train.py --config=configs/demo/autoencoder.py --workdir=$(RUNS)/autoencoder
	.venv/bin/python train.py --config=configs/demo/ldm.py --workdir=$(RUNS)/ldm --config.first_stage=$(RUNS)/autoencoder
	.venv/bin/python sample.py --model=$(RUNS)/ldm --labels=0-9 --num_samples=100 --batch_size=100 --out=$(SAMPLES)
	.venv/bin/python -m ldm_jax.cli.evaluate --model=$(RUNS)/autoencoder --out=$(RUNS)/autoencoder/evaluation.json
	.venv/bin/python -m ldm_jax.cli.evaluate --model=$(RUNS)/ldm --out=$(RUNS)/ldm/evaluation.json
	@echo "the pictures: $(SAMPLES)/grid.png and $(RUNS)/*/previews/"

# The first stage that the demos of the shapes world share; done once, it is only looked at again.
.PHONY: demo-shapes demo-text demo-inpaint demo-sr demo-layout demo-semantic demo-rdm demo-unconditional
demo-shapes: .venv/run
	.venv/bin/python train.py --config=configs/demo/shapes_autoencoder.py --workdir=$(SHAPES)/autoencoder
	test -d $(SHAPES)/latents || .venv/bin/python -m ldm_jax.cli.encode --config=configs/demo/shapes_unconditional.py --images --batch_size=100 \
		--config.first_stage=$(SHAPES)/autoencoder --out=$(SHAPES)/latents

# $(call shapes,CONFIG,FLAGS): trains a task on it, and measures on 256 held-out records that the condition is obeyed; ends with a picture.
define shapes
	.venv/bin/python train.py --config=configs/demo/$(1).py --workdir=$(SHAPES)/$(1) --config.first_stage=$(SHAPES)/autoencoder \
		--config.data.cache=$(SHAPES)/latents $(2)
	.venv/bin/python -m ldm_jax.cli.evaluate --model=$(SHAPES)/$(1) --out=$(SHAPES)/$(1)/evaluation.json --picture=$(SHAPES)/$(1)/picture.png
	@echo "the picture: $(SHAPES)/$(1)/picture.png"
endef

demo-text: demo-shapes
	$(call shapes,text)

demo-inpaint: demo-shapes
	$(call shapes,inpainting)

demo-sr: demo-shapes
	$(call shapes,super_resolution)

demo-layout: demo-shapes
	$(call shapes,layout)

demo-semantic: demo-shapes
	$(call shapes,semantic)

demo-unconditional: demo-shapes
	$(call shapes,shapes_unconditional)

demo-rdm: demo-shapes
	.venv/bin/python train.py --config=configs/demo/embedding.py --workdir=$(SHAPES)/embedding
	test -d $(SHAPES)/database || .venv/bin/python -m ldm_jax.cli.embed --model=$(SHAPES)/embedding --config=configs/demo/retrieval.py --out=$(SHAPES)/database \
		--config.data.fields.embeddings.database=$(SHAPES)/database
	$(call shapes,retrieval,--config.data.fields.embeddings.database=$(SHAPES)/database)

lint: .venv/test
	.venv/bin/python -m ruff check .

test: lint
	.venv/bin/python -m pytest -n 2 --dist=loadfile -m "not slow"

# What repeats a guarded claim in more places: the rest of the resume matrix, more choices through whole runs.
test-slow: .venv/test
	.venv/bin/python -m pytest -n 2 --dist=loadfile -m slow

# Imports everything and runs one step of each stage under the newest Python found, which has the newest jax.
test-latest:
	@if [ -z "$(LATEST)" ]; then echo "no Python >= 3.12 here: nothing to do"; else $(MAKE) --no-print-directory run-latest; fi

.PHONY: run-latest
run-latest: .venv-latest/test
	.venv-latest/bin/python -m pytest tests/train/test_stages.py tests/test_import.py

clean:
	rm -rf .venv .venv-latest
