"""Bytes on disk: checkpoints, deltas, LoRA adapters, the cache, the corpus."""
