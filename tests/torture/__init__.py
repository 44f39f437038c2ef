"""Kill every writing command at its file operations, or make these fail, and judge what is left. See `__main__`."""
