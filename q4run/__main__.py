"""``python -m q4run`` and the ``q4run`` command."""

from q4run.machine.interrupts import quit_on_ctrl_c


def main() -> None:
    """Runs the command line and exits."""
    quit_on_ctrl_c()
    from q4run import cli  # takes a fifth of a second

    cli.main()


if __name__ == "__main__":
    main()
