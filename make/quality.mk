# What makes the suite hard to break, beyond its tests. See docs/reliability.md.

.PHONY: fuzz delays audit

# Cases for each of the fuzz tests; other tests of properties try as many as ever, but others. The seed is printed, and with SEED=N the same cases come again.
CASES := 2000
SEED := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')

fuzz: setup kernels-if-possible ## Damage input files in CASES=2000 ways a test; SEED=N repeats a run, ONLY=NAME is for some tests
	@echo "make fuzz: SEED=$(SEED) CASES=$(CASES)"
	FUZZ_CASES=$(CASES) $(PYTHON) -m pytest -m hypothesis --hypothesis-seed=$(SEED) -p no:cacheprovider --durations=0 $(if $(ONLY),-k "$(ONLY)")

# For the loader, as LD_PRELOAD, which takes no path with a space in it.
RANDOM_DELAYS := .cache/random_delays.so

$(RANDOM_DELAYS): tests/helpers/random_delays.c
	mkdir -p $(@D)
	cc -O1 -Wall -Wextra -shared -fPIC -o $@ $< -ldl

delays: setup all-kernels-if-possible $(RANDOM_DELAYS) ## Run the tests with processes that stand still at random; ONLY=NAME is for some tests
	LD_PRELOAD=$(CURDIR)/$(RANDOM_DELAYS) $(PYTHON) -m pytest -p no:cacheprovider $(if $(ONLY),-k "$(ONLY)")

# In an environment of its own. It asks a service on the network for what is known about the pinned versions.
PIP_AUDIT := .cache/pip-audit-2.10.1

$(PIP_AUDIT): | setup
	rm -rf $@.incomplete
	$(PYTHON) -m venv $@.incomplete
	$@.incomplete/bin/python -m pip install --quiet pip-audit==2.10.1
	mv $@.incomplete $@

# Of all packages in .venv, those that requirements.txt brings along included. What cannot be looked up is an error.
audit: $(PIP_AUDIT) ## Look up known vulnerabilities of all packages in .venv (needs network)
	$(PIP_AUDIT)/bin/python -m pip_audit --strict --path "$(WHEEL)"
