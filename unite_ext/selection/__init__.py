"""Determine: which models to ensemble, and the files their scores are read from."""
