"""When experts are read before they are asked for, under their ``--prefetch`` names."""

PREFETCH = ("auto", "always", "never")
DEFAULT_PREFETCH = "auto"
