# Every target does all of its own set-up. Linux and macOS; on Windows use WSL.

PYTHON ?= python3
VENV := .venv/bin/python
WORKERS ?= 2
PYTEST = $(VENV) -m pytest -n $(WORKERS) --dist loadgroup

.PHONY: setup demo test page quick lint format workflows models interface compatibility hosts bench full-size gpu-check experiments

setup:    ## the Python packages in .venv, ComfyUI in .comfyui (or your own: COMFYUI_PATH)
	@$(PYTHON) tools/setup_host.py

demo: setup    ## images without and with guidance, from a real server, into .demo/
	@$(VENV) -m tools.demo

test: lint    ## every test but those of `make page`, in the real host and its page
	@$(VENV) -m tools.setup_chromium
	$(PYTEST) -m "not every_template"

page: setup    ## every template in the real page, also in Nodes 2.0 and in Chinese, and every demo run there; ten minutes
	@$(VENV) -m tools.setup_chromium
	$(VENV) -m pytest -n 0 tests/browser

quick: setup    ## ruff and the tests that need no server and no long run, in under 3 minutes: for every change
	$(VENV) -m ruff check
	$(PYTEST) -m "not slow" tests/unit tests/host

hosts: setup    ## the in-process tests on an older ComfyUI: HOST=0.27.0, 0.20.1 or 0.16.3; without it, a few of them
	$(VENV) -m tools.older_hosts $(HOST)

lint: setup    ## ruff, mypy and comfy-import-guard
	$(VENV) -m ruff check
	$(VENV) -m ruff format --check
	$(VENV) -m tools.type_check
	$(VENV) -m tools.import_check

format: setup
	$(VENV) -m ruff check --fix
	$(VENV) -m ruff format

workflows: setup    ## the API twins in workflows/api/ from the workflow files
	@$(VENV) -m tools.api_twins

models: setup    ## docs/models.md, which node works with which model
	@$(VENV) -m tools.run tools.model_table

interface: setup    ## tests/node_interface.json, the inputs and outputs that saved workflows rely on
	@$(VENV) -m tools.run tests.support.node_interface

compatibility: setup    ## docs/compatibility.md, what happens with each node of the host that patches a model
	@$(VENV) -m tools.run tests.support.compatibility

bench: setup    ## what guidance costs, into benchmarks/speed.md; a quarter of an hour on two cores
	@$(VENV) -m tools.run benchmarks.speed

full-size: setup    ## the templates on models of real size with random weights (SDXL=1: on SDXL; TRANSFORMER=1: also Flux and Z-Image cut in depth); 15 minutes on two cores
	@$(VENV) -m tools.run benchmarks.random_checkpoints $(if $(SDXL),--sdxl) .cache/full-size/models
	@$(VENV) -m tools.full_size $(if $(SDXL),--sdxl)
	@$(if $(TRANSFORMER),$(VENV) -m tools.run benchmarks.real_transformers)

gpu-check: setup    ## the pack on this GPU against the CPU, into one report (CHECKPOINT=file DEPTH_MODEL=file: on these, too)
	@CHECKPOINT="$(CHECKPOINT)" DEPTH_MODEL="$(DEPTH_MODEL)" SIDE="$(SIDE)" $(VENV) -m pytest -n 0 tests/gpu

experiments: setup    ## the papers' tables on the demo world, into docs/results/; hours on two cores
	@$(VENV) -m tools.run experiments.spectrum_experiment
	@$(VENV) -m tools.run experiments.label_efficiency
	@$(VENV) -m tools.run experiments.label_efficiency --family transformer
	@$(VENV) -m tools.run experiments.transformer_blocks
	@$(VENV) -m tools.run experiments.transformer_depth_guidance
	@$(VENV) -m tools.run experiments.latent_head
	@$(VENV) -m tools.run experiments.prior_levels
	@$(VENV) -m tools.run experiments.prior_size
	@$(VENV) -m tools.run experiments.dag_experiment sweep
	@$(VENV) -m tools.run experiments.dag_experiment compare
	@$(VENV) -m tools.run experiments.dag_experiment compare --family transformer
	@$(VENV) -m tools.run experiments.dag_experiment hinge
	@for seed in 1 2; do for what in head "prior --size 32"; do \
		$(VENV) -m tools.run demo.train_depth $$what --seed $$seed --out .cache/other_seeds/$$seed || exit 1; done; done
	@$(VENV) -m tools.run demo.train renders
	@for seed in 1 2; do for stage in "recogniser --minutes 15" "depth_judge --minutes 6"; do \
		$(VENV) -m tools.run demo.train $$stage --seed $$seed --out .cache/other_seeds/$$seed || exit 1; done; done
	@$(VENV) -m tools.run experiments.dag_experiment seeds
	@$(VENV) -m tools.run experiments.downstream
	@$(VENV) -m tools.run experiments.dag_experiment screen
	@$(VENV) -m tools.run experiments.dag_experiment objects
	@$(VENV) -m tools.run experiments.sag_experiment sweep
	@$(VENV) -m tools.run experiments.sag_experiment compare
	@$(VENV) -m tools.run experiments.sag_experiment sweep --family transformer
	@$(VENV) -m tools.run experiments.sag_experiment compare --family transformer
	@$(VENV) -m tools.run experiments.sag_experiment judges
	@for seed in 1 2; do $(VENV) -m tools.run demo.train_classifier --seed $$seed --out .cache/other_seeds/$$seed || exit 1; done
	@$(VENV) -m tools.run experiments.sag_experiment classifiers
