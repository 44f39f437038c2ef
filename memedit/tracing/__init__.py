"""Causal tracing, and the layers it suggests to edit."""
