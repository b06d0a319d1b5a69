"""Determine which models to ensemble, from files of their scores."""
