"""Runs a test file as a script, in a process of its own."""

import os
from collections.abc import Mapping
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def script_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Returns this process's environment with ``changes``, where scripts find the helpers too."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | changes
