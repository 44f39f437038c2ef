"""The made world, the models trained on it, and the benchmarks."""
