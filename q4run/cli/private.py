"""Text that can be shown to strangers: without the names of a person or of a machine."""

import os
import platform
import re
from pathlib import Path
from typing import Any

_PERSON, _HOST = "USER", "HOST"
# Names that say nothing of anybody.
_NOBODY = ("root", "user", "ubuntu", "localhost", "home")


def without_names(value: Any) -> Any:
    """``value``, of what JSON has, with ``~`` for the home folder in all of its strings, and USER
    and HOST for the user's and the machine's name where a path is named after them."""
    if isinstance(value, str):
        return _shorten(value)
    if isinstance(value, list):
        return [without_names(item) for item in value]
    if isinstance(value, dict):
        return {key: without_names(item) for key, item in value.items()}
    return value


def _shorten(text: str) -> str:
    for home in _homes():
        text = re.sub(rf"(?<![\w/.~-]){re.escape(home)}(?![\w.-])", "~", text)
    for name, stand_in in _names():
        text = re.sub(rf"(?<=/){re.escape(name)}(?![\w-])", stand_in, text)
    return text


def _homes() -> list[str]:
    try:
        home = str(Path.home())
    except RuntimeError:  # neither $HOME nor an entry for the user
        return []
    homes = {home.rstrip("/"), os.path.realpath(home)}
    return sorted((home for home in homes if home.count("/") and home != "/"), key=len)[::-1]


def _names() -> list[tuple[str, str]]:
    users = [os.environ.get(key, "") for key in ("LOGNAME", "USER", "SUDO_USER")]
    users += [Path(home).name for home in _homes()]
    hosts = [platform.node(), platform.node().partition(".")[0]]
    known = [(name, _PERSON) for name in users] + [(name, _HOST) for name in hosts]
    return sorted(
        {pair for pair in known if len(pair[0]) > 1 and pair[0].lower() not in _NOBODY},
        key=lambda pair: -len(pair[0]),
    )
