"""`python -m lessen`, and the `lessen` script."""

from lessen.cli.main import main

if __name__ == "__main__":
    main()
