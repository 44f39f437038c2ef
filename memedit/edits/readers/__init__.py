"""One file for each format of edit lists."""
