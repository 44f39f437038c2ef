"""Edit lists with something wrong in them, and what must be said of each."""
