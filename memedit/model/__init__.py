"""The only place that knows transformers: opening a model, finding its way around it, running it."""
