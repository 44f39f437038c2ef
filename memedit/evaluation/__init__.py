"""Probes asked of a model, and the figures made of the answers."""
