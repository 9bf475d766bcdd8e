"""`python -m lessen`, and the `lessen` script."""

from lessen.cli.app import main

if __name__ == "__main__":
    main()
