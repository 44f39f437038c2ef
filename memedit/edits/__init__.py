"""Edits: their definition, the formats they are read from, and the checks of a list."""
