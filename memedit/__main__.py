"""`python -m memedit`."""

from memedit.cli.app import main

if __name__ == "__main__":
    main()
