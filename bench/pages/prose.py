"""Text with figures in it, as Markdown."""

import re
import textwrap

_WIDTH = 100
# What stands for a space that no line may end at.
_TIED = "\0"


def paragraph(template: str, **values: object) -> str:
    """A template with its ``{placeholders}`` filled, wrapped anew; code and a number with its unit
    stay on a line."""
    text = " ".join((template.format(**values) if values else template).split())
    text = re.sub(r"`[^`]*`|\d (?=%|[kMG]?B\b|s\b|M\b)", _tie, text)
    filled = textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return filled.replace(_TIED, " ")


def _tie(match: re.Match[str]) -> str:
    return match[0].replace(" ", _TIED)


def in_words(count: float) -> str:
    """A small whole number as text has it."""
    words = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    return words[int(count)] if count in range(len(words)) else f"{count:g}"


def how_often(count: int) -> str:
    """``once``, ``twice``, ``three times``."""
    return {1: "once", 2: "twice"}.get(count, f"{in_words(count)} times")


def code(*commands: str) -> str:
    """Commands in a block, long ones continued on further lines."""
    return "```bash\n" + "\n".join(map(_continued, commands)) + "\n```"


def _continued(command: str) -> str:
    """Broken before options alone, and never within quotes."""
    lines: list[str] = []
    for part in re.split(r" (?=-)", command) if not re.search("['\"]", command) else [command]:
        if lines and len(lines[-1]) + len(part) < _WIDTH - 2:
            lines[-1] += f" {part}"
        else:
            lines.append(f"    {part}" if lines else part)
    return " \\\n".join(lines)
