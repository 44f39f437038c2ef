"""Outputs as they were agreed; `make golden` writes them again, and the difference is read before it is kept."""
