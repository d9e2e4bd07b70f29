"""What can go wrong in a way that the person at the keyboard can act on.

Every message is one line, names the thing at fault and says what to do about it;
the command line prints it after ``error:`` and exits with status 1.
"""


class Error(Exception):
    """Base of every error that q4run raises on purpose."""


class FormatError(Error):
    """A file is damaged, truncated or not of the format it claims."""


class UnsupportedError(Error):
    """A well-formed input asks for an architecture, type or feature q4run does not have."""


class BudgetError(Error):
    """The model does not fit into the RAM budget; the message says the least that would."""
