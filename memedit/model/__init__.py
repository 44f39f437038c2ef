"""Open a model, describe its structure, prove it on the weights."""
