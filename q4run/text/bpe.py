"""Byte-level BPE (GPT-2, Llama 3 and 4, Qwen) from a GGUF's tokens and merges.

Every byte is written as one printable character (the GPT-2 alphabet), so that a token may end
inside a UTF-8 sequence. The merging itself is the ``tokenizers`` library's.
"""

import re

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizerSequence

from q4run.errors import FormatError
from q4run.text.long_text import encode_in_chunks
from q4run.text.pre_tokenizers import PreTokenizer, find_pre_tokenizer
from q4run.text.vocabulary import Vocabulary

# Every pre-tokenizer cuts between two words, and between a line and the next, alike whatever stands
# farther on.
_SAFE_CUT = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])|(?<=\S\n)(?=[^\W\d_])")


def _byte_alphabet() -> dict[str, int]:
    """The GPT-2 characters and the byte each stands for: itself where printable, else 256 + i."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    characters.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return characters


_BYTE_OF_CHARACTER = _byte_alphabet()


class ByteLevelBPE:
    """Plain text to token ids by byte-level BPE, and a token's text to the bytes it stands for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        pre_tokenizer = find_pre_tokenizer(vocabulary.pre)
        self.add_bos = pre_tokenizer.add_bos
        self._library = _build(vocabulary, pre_tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text in which no token is special."""
        return encode_in_chunks(self._library, text, _SAFE_CUT)

    @staticmethod
    def token_bytes(text: bytes) -> bytes:
        """The bytes that an ordinary token stands for whose text, in UTF-8, is ``text``."""
        try:
            return bytes([_BYTE_OF_CHARACTER[character] for character in text.decode()])
        except (KeyError, UnicodeDecodeError):
            return text


def _build(vocabulary: Vocabulary, pre_tokenizer: PreTokenizer) -> Tokenizer:
    """The library's tokenizer, in which no plain text becomes a control token."""
    hidden = vocabulary.unreachable()
    ids = {text: id for text, id in vocabulary.ids.items() if text not in hidden}
    merges = _pairs(vocabulary, hidden)
    try:
        library = Tokenizer(BPE(ids, merges, ignore_merges=pre_tokenizer.ignore_merges))
    except Exception as error:  # the library has no narrower class
        reason = f"{str(error)[:80]!r}"
        raise FormatError(f"tokenizer.ggml.merges do not fit the tokens: {reason}") from error
    cuts = [Split(Regex(pattern), "isolated") for pattern in pre_tokenizer.patterns]
    byte_level = ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = PreTokenizerSequence([*cuts, byte_level])
    return library


def _pairs(vocabulary: Vocabulary, hidden: set[str]) -> list[tuple[str, str]]:
    """The merges in order, as pairs of the vocabulary's own strings (a copy of each would cost)."""
    if vocabulary.merges is None:
        raise FormatError("a byte-level BPE vocabulary needs tokenizer.ggml.merges; it is missing")
    known = {text: text for text in vocabulary.tokens}
    pairs = []
    for merge in vocabulary.merges:
        left, _, right = merge.partition(" ")
        try:
            pair = known[left], known[right]
        except KeyError:
            raise FormatError(
                f"tokenizer.ggml.merges has {merge[:80]!r}, which is not a pair of known tokens"
            ) from None
        if hidden.isdisjoint((left, right, left + right)):
            pairs.append(pair)
    return pairs
