"""The command line: thin, on Typer; imports what is heavy only when a command runs."""
