"""Ensembles under lm-evaluation-harness."""
