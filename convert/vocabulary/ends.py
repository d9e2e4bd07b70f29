"""The ids of a checkpoint's special tokens, and of all tokens that end an answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from q4run.convert.vocabulary.tokens import CONTROL, Vocabulary
from q4run.text.ends import stops_by_text

# Tokens that end a turn or a message, by the text that chat models give them.
END_OF_TURN = (
    "<|eot|>",
    "<|eot_id|>",
    "<|im_end|>",
    "<end_of_turn>",
    "<|end|>",
    "<turn|>",
    "</assistant>",
)
END_OF_MESSAGE = ("<|eom|>", "<|eom_id|>")


def special_ids(vocabulary: Vocabulary, sources: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Token ids by role (bos, eos, unk, pad, eot, eom).

    ``sources`` are the objects of the files that may name them, the one that counts first in front.
    The text under ``eos_token`` counts before the number under ``eos_token_id``, as in llama.cpp's
    converter, because chat models put the token that ends a turn there. GGUF has room for one
    eos; of a list of numbers the first is taken, and tokens known to end turns or messages have
    roles of their own, so that generation stops at them too.
    """
    by_text = {text: token_id for token_id, text in enumerate(vocabulary.tokens)}
    result = {}
    for role in ("bos", "eos", "unk", "pad"):
        texts = [_text_of(source.get(f"{role}_token")) for source in sources]
        known = [by_text[text] for text in texts if text in by_text]
        for source in sources:
            known += _numbers_of(source.get(f"{role}_token_id"), len(by_text))[:1]
        if not known and role in vocabulary.special_ids:
            known = [vocabulary.special_ids[role]]
        if known:
            result[role] = known[0]
    for role, candidates in (("eot", END_OF_TURN), ("eom", END_OF_MESSAGE)):
        for text in candidates:
            token_id = by_text.get(text)
            if token_id is not None and vocabulary.types[token_id] == CONTROL:
                result[role] = token_id
                break
    return result


def stop_ids(
    vocabulary: Vocabulary, ids: dict[str, int], sources: Sequence[Mapping[str, Any]]
) -> tuple[list[int], list[str]]:
    """All tokens that the ``sources`` name as ends, where eos, eot and eom do not name them all.

    The first that has no role becomes the end of a turn where there is none yet, in ``ids``. Also
    returns what is to be told of those that readers of GGUF do not know.
    """
    n_vocab = len(vocabulary.tokens)
    named = dict.fromkeys(
        number for source in sources for number in _numbers_of(source.get("eos_token_id"), n_vocab)
    )
    roles = ("eos", "eot", "eom")
    left = [number for number in named if number not in [ids.get(role) for role in roles]]
    if left and "eot" not in ids:
        ids["eot"] = left.pop(0)
    if not left:
        return [], []
    by_text = stops_by_text({text: number for number, text in enumerate(vocabulary.tokens)})
    unknown = [vocabulary.tokens[number] for number in left if number not in by_text]
    stops = sorted({*named, *(ids[role] for role in roles if role in ids)})
    if not unknown:
        return stops, []
    shown = ", ".join(f"{text!r:.40}" for text in unknown[:5])
    return stops, [f"GGUF has no key for these ends of an answer; only q4run stops there: {shown}"]


def _text_of(value: Any) -> str | None:
    """A special token's text: a string, or an object that has it under ``content``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _numbers_of(value: Any, n_vocab: int) -> list[int]:
    """The token ids in a number or a list of them."""
    numbers = value if isinstance(value, list) else [value]
    return [number for number in numbers if type(number) is int and 0 <= number < n_vocab]
