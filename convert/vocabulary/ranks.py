"""BPE from lists of byte strings and their ranks: ``tekken.json`` and ``*.tiktoken``.

Such files have no merges: whatever two neighbours make a token is joined, the lowest rank first.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q4run.convert.config import read_file, read_json
from q4run.convert.vocabulary.pre_tokenizer import name_pre_tokenizer
from q4run.convert.vocabulary.tokens import (
    CONTROL,
    NORMAL,
    USER_DEFINED,
    TokenTable,
    Vocabulary,
    read_added_decoder,
)
from q4run.errors import FormatError
from q4run.text.bpe import spell_bytes

# Every way of cutting every token takes the squared length of each; real ones need a hundredth.
MOST_WORK = 10**9
# A tekken.json of the first version does not list its special tokens; these are the first of them.
_TEKKEN_LIST = """
<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS]
[TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT]
[/SYSTEM_PROMPT] [TOOL_CONTENT]
"""
TEKKEN_SPECIAL = tuple(_TEKKEN_LIST.split())
BASE64_KEY = "token_bytes"


@dataclass(frozen=True)
class TiktokenKind:
    """What the code beside a ``*.tiktoken`` file says: its pre-tokenizer, its special tokens.

    ``special`` follow the ranks, in this order, and then ``n_extra`` numbered ones.
    """

    pre: str
    special: tuple[str, ...]
    extra: str
    n_extra: int


_EXTRA = "<|extra_{}|>"
TIKTOKEN_FILES = {
    "qwen.tiktoken": TiktokenKind(
        "qwen2", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), _EXTRA, 205
    ),
    "hy.tiktoken": TiktokenKind(
        "hunyuan",
        ("<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"),
        _EXTRA,
        205,
    ),
    "tiktoken.model": TiktokenKind("kimi-k2", (), "<|reserved_token_{}|>", 256),
}


def read_tiktoken(path: Path, n_vocab: int, pre: str | None) -> Vocabulary:
    """The vocabulary of a file in ``TIKTOKEN_FILES``, with what ``tokenizer_config.json`` adds.

    ``pre`` is GGUF's name for its pre-tokenizer, where a person gives it. Raises ``FormatError``.
    """
    kind = TIKTOKEN_FILES[path.name]
    ranks = _tiktoken_ranks(path)
    table = TokenTable(n_vocab, str(path))
    for token, rank in ranks.items():
        table.put(rank, spell_bytes(token), NORMAL)
    first = max(ranks.values()) + 1
    for token_id, text, type_ in read_added_decoder(path.parent):
        table.put_added(token_id, text, type_)
    names = [*kind.special, *(kind.extra.format(number) for number in range(kind.n_extra))]
    for token_id, text in enumerate(names, first):
        if not kind.special:  # numbered by their ids, not from 0
            text = kind.extra.format(token_id)
        if token_id < n_vocab and table.is_free(token_id):
            table.put(token_id, text, CONTROL)
    tokens, types, _ = table.finish()
    merges = _merges(path, ranks)
    vocabulary = Vocabulary("gpt2", pre or kind.pre, tokens, types, merges=merges)
    vocabulary.notes = table.notes()
    return vocabulary


def read_tekken(path: Path, n_vocab: int, pre: str | None) -> Vocabulary:
    """The vocabulary of a ``tekken.json``.

    ``pre`` is GGUF's name for its pre-tokenizer, where a person gives it. Raises ``FormatError``
    for a damaged file, ``UnsupportedError`` for a pattern that no pre-tokenizer has.
    """
    tekken = read_json(path)
    config = tekken.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("pattern"), str):
        raise FormatError(f"{path}: has no pattern")
    n_special = _count(path, config, "default_num_special_tokens")
    n_tokens = _count(path, config, "default_vocab_size")
    name, notes = name_pre_tokenizer(path, [config["pattern"]], ignore_merges=True, forced=pre)
    ranks = _tekken_ranks(path, tekken.get("vocab"), n_tokens - n_special)
    table = TokenTable(n_vocab, str(path))
    for token_id, text, is_control in _tekken_special(path, tekken, n_special):
        table.put(token_id, text, CONTROL if is_control else USER_DEFINED)
    for token, rank in ranks.items():
        table.put(rank + n_special, spell_bytes(token), NORMAL)
    tokens, types, _ = table.finish()
    vocabulary = Vocabulary("gpt2", name, tokens, types, merges=_merges(path, ranks))
    vocabulary.notes = [*notes, *table.notes()]
    vocabulary.add_bos = True
    ids = {text: token_id for token_id, text in enumerate(tokens[:n_special])}
    roles = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}
    vocabulary.special_ids = {role: ids[text] for role, text in roles.items() if text in ids}
    return vocabulary


def _merges(path: Path, ranks: Mapping[bytes, int]) -> list[str]:
    """Every way of joining two tokens into a third, the third with the lowest rank first."""
    if sum(len(token) ** 2 for token in ranks) > MOST_WORK:
        raise FormatError(f"{path}: has tokens far too long for a vocabulary")
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        pairs.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [f"{spell_bytes(left)} {spell_bytes(right)}" for left, right in pairs]
    return merges


def _tiktoken_ranks(path: Path) -> dict[bytes, int]:
    """Byte strings and their ranks: a line each, the bytes in base 64, then the rank."""
    lines = read_file(path).splitlines()
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        encoded, _, rank = line.partition(b" ")
        if not rank.isdigit() or len(rank) > 9:
            raise FormatError(f"{path}: line {number} is not a token and its rank")
        ranks[_decoded(path, encoded, f"line {number}")] = int(rank)
    if not ranks:
        raise FormatError(f"{path}: holds no tokens")
    return ranks


def _tekken_ranks(path: Path, vocab: Any, most: int) -> dict[bytes, int]:
    if not isinstance(vocab, list):
        raise FormatError(f"{path}: has no vocabulary")
    ranks: dict[bytes, int] = {}
    for place, entry in enumerate(vocab[:most]):
        encoded = entry.get(BASE64_KEY) if isinstance(entry, dict) else None
        if not isinstance(encoded, str) or entry.get("rank", place) != place:
            raise FormatError(f"{path}: token {place} has no bytes, or another's rank")
        ranks[_decoded(path, encoded.encode(), f"token {place}")] = place
    return ranks


def _tekken_special(
    path: Path, tekken: Mapping[str, Any], n_special: int
) -> Iterator[tuple[int, str, bool]]:
    """Id, text and whether it is for control, of all special tokens."""
    listed: dict[int, tuple[str, bool]] = {
        token_id: (text, True) for token_id, text in enumerate(TEKKEN_SPECIAL)
    }
    for entry in tekken.get("special_tokens") or []:
        text = entry.get("token_str") if isinstance(entry, dict) else None
        if not isinstance(text, str) or type(entry.get("rank")) is not int:
            raise FormatError(f"{path}: a special token has no text or no rank")
        listed[entry["rank"]] = text, entry.get("is_control") is not False
    for token_id in range(n_special):
        text, is_control = listed.get(token_id, (f"<SPECIAL_{token_id}>", True))
        yield token_id, text, is_control


def _count(path: Path, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 <= value < 2**31:
        raise FormatError(f"{path}: {key} is {value!r:.30}, not a count")
    return value


def _decoded(path: Path, encoded: bytes, what: str) -> bytes:
    try:
        token = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        token = b""
    if not token:
        raise FormatError(f"{path}: {what} is no base 64")
    return token
