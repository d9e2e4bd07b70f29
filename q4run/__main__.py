"""``python -m q4run``: the same as the ``q4run`` command."""

from q4run.cli import main

if __name__ == "__main__":
    main()
