"""What an edit is, every format that becomes one, and everything that can be wrong with it."""
