"""Values -> text for people."""
