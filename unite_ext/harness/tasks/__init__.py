"""Task files for lm-evaluation-harness: the six benchmarks in the UNITE paper's settings."""
