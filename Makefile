# Each target does the set-up it needs, once; see scripts/setup.sh.

PYTHON := .venv/bin/python
ROOMS := system text snapshots engine ranks records training inference

.PHONY: help setup pretrain test test-fast test-without-kernels lint ci

help: ## Show the targets
	@echo "usage: make TARGET"
	@awk -F ':.*## ' '/^[a-z][a-z0-9_-]*:.*## / { printf "  %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Make .venv: Python 3.10 and the pinned requirements
	@scripts/setup.sh

pretrain test: export BERT_SETUP_KERNELS := yes

pretrain: setup kernels-if-possible ## Pre-train BERT on the 40 samples, with the tutorial's command line
	$(PYTHON) ./run_pretraining.py \
	  --gpu_num_per_node=1 \
	  --learning_rate=3e-5 \
	  --batch_size_per_device=1 \
	  --iter_num=20 \
	  --loss_print_every_n_iter=50 \
	  --seq_length=128 \
	  --max_predictions_per_seq=20 \
	  --num_hidden_layers=12 \
	  --num_attention_heads=12 \
	  --max_position_embeddings=512 \
	  --type_vocab_size=2 \
	  --vocab_size=30522 \
	  --attention_probs_dropout_prob=0.0 \
	  --hidden_dropout_prob=0.0 \
	  --hidden_size_per_head=64 \
	  --use_boxing_v2=True \
	  --data_dir=./dataset/ \
	  --data_part_num=1 \
	  --log_dir=./bert_regresssioin_test/of \
	  --loss_print_every_n_iter=5 \
	  --model_save_dir=./bert_regresssioin_test/of \
	  --warmup_batches 831 \
	  --save_last_snapshot True

# Two files of tests at a time, in the order of tests/conftest.py.
PYTEST := $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: setup all-kernels-if-possible ## Run all tests
	$(PYTEST)

test-fast: setup kernels-if-possible ## Run the tests that are not marked slow, in a minute or two
	$(PYTEST) -m "not slow"

test-without-kernels: setup ## Run the tests of graphs with OneFlow's own kernels
	BERT_KERNELS=none $(PYTEST) -m engine

# What .ci/run calls.
ci: lint test test-real-weights test-without-kernels kernels-clang kernels-sanitize ## Run all that CI runs

lint: setup ## Check style (ruff) and types (mypy)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	MYPYPATH=tests/helpers $(PYTHON) -m mypy *.py $(ROOMS) tools tests
	MYPYPATH=.:tools:tests/helpers $(PYTHON) -m mypy benchmarks

include make/dataset.mk make/kernels.mk make/real_weights.mk make/quality.mk
-include make/benchmarks.mk
