"""BPE by the merges in a GGUF: over bytes (GPT-2, Llama 3 and 4, Qwen), or over UTF-8 (Gemma 4).

Over bytes, each is written as one printable character (the GPT-2 alphabet), so that a token may end
inside a UTF-8 sequence. Over UTF-8, a space is "▁" and what is no token falls back to byte tokens.
The merging itself is the ``tokenizers`` library's.
"""

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizerSequence

from q4run.errors import FormatError
from q4run.text.long_text import encode_in_chunks
from q4run.text.pre_tokenizers import PreTokenizer, find_pre_tokenizer
from q4run.text.sentencepiece import SPACE, add_unknown
from q4run.text.vocabulary import TokenType, Vocabulary


def _byte_alphabet() -> dict[str, int]:
    """The GPT-2 characters and the byte each stands for: itself where printable, else 256 + i."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    characters.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return characters


_BYTE_OF_CHARACTER = _byte_alphabet()


_CHARACTER_OF_BYTE = {byte: character for character, byte in _BYTE_OF_CHARACTER.items()}


def spell_bytes(token: bytes) -> str:
    """Returns bytes as a byte-level vocabulary writes them: one character for each."""
    return "".join(_CHARACTER_OF_BYTE[byte] for byte in token)


class ByteLevelBPE:
    """Plain text to token ids by byte-level BPE, and a token's text to the bytes it stands for."""

    def __init__(self, vocabulary: Vocabulary, pre_tokenizer: PreTokenizer) -> None:
        hidden = vocabulary.unreachable()
        ids = {text: id for text, id in vocabulary.ids.items() if text not in hidden}
        self._library = _build(vocabulary, pre_tokenizer, ids, hidden)
        self._safe_cut = pre_tokenizer.safe_cut
        self.add_bos = pre_tokenizer.add_bos

    def encode(self, text: str) -> list[int]:
        """Token ids of a text in which no token is special."""
        return encode_in_chunks(self._library, text, self._safe_cut)

    @staticmethod
    def token_bytes(text: bytes) -> bytes:
        """The bytes that an ordinary token stands for whose text, in UTF-8, is ``text``."""
        try:
            return bytes([_BYTE_OF_CHARACTER[character] for character in text.decode()])
        except (KeyError, UnicodeDecodeError):
            return text


class Utf8BPE:
    """Plain text to token ids by BPE over UTF-8, and a token's text to the bytes it stands for."""

    def __init__(self, vocabulary: Vocabulary, pre_tokenizer: PreTokenizer) -> None:
        hidden = vocabulary.unreachable()
        kinds = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.BYTE)
        ids = {text: id for kind in kinds for text, id in vocabulary.of_type(kind, hidden).items()}
        unknown = add_unknown(vocabulary, ids)
        self._library = _build(vocabulary, pre_tokenizer, ids, hidden, unknown)
        self._safe_cut = pre_tokenizer.safe_cut
        self.add_bos = pre_tokenizer.add_bos

    def encode(self, text: str) -> list[int]:
        """Token ids of a text in which no token is special."""
        return encode_in_chunks(self._library, text.replace(" ", SPACE), self._safe_cut)

    @staticmethod
    def token_bytes(text: bytes) -> bytes:
        """The bytes that an ordinary token stands for whose text, in UTF-8, is ``text``."""
        return text.replace(SPACE.encode(), b" ")


def load_bpe(vocabulary: Vocabulary) -> ByteLevelBPE | Utf8BPE:
    """Returns the BPE of a vocabulary that has merges.

    Raises ``UnsupportedError`` for an unknown pre-tokenizer and ``FormatError`` for merges that are
    missing or do not fit the tokens.
    """
    pre_tokenizer = find_pre_tokenizer(vocabulary.pre)
    kind = ByteLevelBPE if pre_tokenizer.byte_level else Utf8BPE
    return kind(vocabulary, pre_tokenizer)


def _build(
    vocabulary: Vocabulary,
    pre_tokenizer: PreTokenizer,
    ids: dict[str, int],
    hidden: set[str],
    unknown: str | None = None,
) -> Tokenizer:
    """The library's tokenizer, in which no plain text becomes a token that is not in ``ids``."""
    merges = _pairs(vocabulary, hidden)
    raw = not pre_tokenizer.byte_level
    flags = {"ignore_merges": pre_tokenizer.ignore_merges, "byte_fallback": raw, "fuse_unk": raw}
    try:
        library = Tokenizer(BPE(ids, merges, unk_token=unknown, **flags))
    except Exception as error:  # the library has no narrower class
        reason = f"{str(error)[:80]!r}"
        raise FormatError(f"tokenizer.ggml.merges do not fit the tokens: {reason}") from error
    cuts = [Split(Regex(pattern), "isolated") for pattern in pre_tokenizer.cuts.patterns]
    spelling = [] if raw else [ByteLevel(add_prefix_space=False, use_regex=False)]
    library.pre_tokenizer = PreTokenizerSequence([*cuts, *spelling])
    return library


def _pairs(vocabulary: Vocabulary, hidden: set[str]) -> list[tuple[str, str]]:
    """The merges in order, as pairs of the vocabulary's own strings (a copy of each would cost)."""
    if vocabulary.merges is None:
        raise FormatError("a BPE vocabulary needs tokenizer.ggml.merges; it is missing")
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
