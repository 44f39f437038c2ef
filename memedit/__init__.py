"""memedit: batch mass-editing of a language model's factual memories."""

__version__ = "0.1.0"
