"""One edit run, from tokenized edits to the ledger."""
