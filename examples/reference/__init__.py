"""Plain, slow programs that say what memedit must compute: tests and benchmarks compare with them."""
