"""Run ensembles in lm-evaluation-harness."""
