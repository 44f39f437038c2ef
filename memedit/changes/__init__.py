"""Weight changes as files: export, add, revert, diff."""
