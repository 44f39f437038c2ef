"""One verb a file: a model and values in, values out; never a path."""
