"""A training run: set-up, job, optimiser, loop, saving, resuming, logging."""
