"""The pre-tokenizer of a ``tokenizer.json``, recognised by its published patterns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from q4run.errors import UnsupportedError
from q4run.text.patterns import DIGIT, GPT2
from q4run.text.pre_tokenizers import find_pre_tokenizer, recognise

# To isolate the matches, or to remove all but the matches: the same where everything matches.
_KEEPS_MATCHES = (("Isolated", False), ("Removed", True))
_OF_KIND = {True: DIGIT.patterns[0], False: rf"{DIGIT.patterns[0]}+"}


def steps_of(stage: Any, list_key: str) -> list[dict[str, Any]]:
    """The steps of a stage that may be one step, a ``Sequence`` of them, or null."""
    if not isinstance(stage, dict):
        return []
    steps = stage.get(list_key, []) if stage.get("type") == "Sequence" else [stage]
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a ``tokenizer.json`` is BPE over bytes (and not over characters)."""
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        return False
    steps = steps_of(tokenizer.get("pre_tokenizer"), "pretokenizers")
    return any(step.get("type") == "ByteLevel" for step in steps)


def name_pre_tokenizer(
    where: Path, patterns: list[str], *, ignore_merges: bool, forced: str | None
) -> tuple[str, list[str]]:
    """GGUF's name for what cuts text into words by ``patterns``, one after the other, and notes.

    ``forced`` is the name to take whatever they are. Raises ``UnsupportedError`` for patterns that
    no name stands for.
    """
    if forced is not None:
        found = find_pre_tokenizer(forced)
        name, same_merging = forced, found.ignore_merges == ignore_merges
        notes = [f"text is cut into words as {forced!r} does (--pre), whatever {where.name} says"]
    else:
        known = recognise(patterns, ignore_merges=ignore_merges)
        if known is None:
            shown = " then ".join(patterns)
            raise UnsupportedError(
                f"{where}: the pre-tokenizer's pattern is not supported (--pre NAME takes one of"
                f" GGUF's): {shown[:400]}"
            )
        name, same_merging, notes = known.pre_tokenizer.names[0], known.same_merging, []
    if not same_merging:
        notes.append(
            f"{where.name} has ignore_merges {ignore_merges}, which readers of GGUF do not expect"
            f" of '{name}': rare words may split differently"
        )
    return name, notes


def patterns_of(path: Path, tokenizer: Mapping[str, Any]) -> list[str]:
    """The patterns by which a byte-level ``tokenizer.json`` cuts text, in turn.

    Raises ``UnsupportedError`` for a step that is not a pattern's.
    """
    steps = steps_of(tokenizer.get("pre_tokenizer"), "pretokenizers")
    *cuts, byte_level = steps
    patterns = [_pattern_of(step) for step in cuts]
    if byte_level.get("type") != "ByteLevel" or None in patterns:
        kinds = ", ".join(str(step.get("type")) for step in steps)
        raise UnsupportedError(f"{path}: the pre-tokenizer ({kinds[:200]}) is not supported")
    if byte_level.get("add_prefix_space"):
        raise UnsupportedError(f"{path}: add_prefix_space in byte-level BPE is not supported")
    found = [pattern for pattern in patterns if pattern is not None]
    if byte_level.get("use_regex", True):
        found += GPT2.patterns
    if not found:
        raise UnsupportedError(f"{path}: a pre-tokenizer that never splits is not supported")
    return found


def _pattern_of(step: Mapping[str, Any]) -> str | None:
    """The pattern of one step; None where it does something else."""
    if step.get("type") == "Digits":
        return _OF_KIND.get(step.get("individual_digits", False))
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    keeps = (step.get("behavior"), step.get("invert", False)) in _KEEPS_MATCHES
    return regex if step.get("type") == "Split" and keeps and isinstance(regex, str) else None
