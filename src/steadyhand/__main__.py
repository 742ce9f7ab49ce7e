"""The command line as `python -m steadyhand`."""

from steadyhand.cli import main

if __name__ == "__main__":
    main()
