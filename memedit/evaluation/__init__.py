"""Ask a model the probes of an edit list, and compute metrics from its answers."""
