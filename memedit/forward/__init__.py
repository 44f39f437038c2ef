"""Batched partial forwards of a model; no policy."""
