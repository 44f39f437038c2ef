"""memedit beside the plain oracle: same model, edits, contexts, moments and steps."""
