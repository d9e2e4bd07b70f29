"""Text from token ids that come one at a time."""

import codecs
from collections.abc import Collection

from q4run.text.tokenizer import Tokenizer


class TextStream:
    """Turns token ids into text as they come, in whole characters: never half a UTF-8 sequence.

    ``special`` also renders control tokens, ``shown`` those with these ids. ``at_start`` says that
    the tokens begin a text rather than continue one: the space that a SentencePiece vocabulary puts
    first is left out, and all that is pushed, and the flush, then join to what ``Tokenizer.decode``
    gives.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        special: bool = False,
        shown: Collection[int] = (),
        at_start: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._shown = shown
        self._at_start = at_start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The characters that token ``id`` completes; empty while one is still incomplete."""
        special = self._special or id in self._shown
        piece = self._tokenizer.piece(id, special=special, at_start=self._at_start)
        self._at_start = self._tokenizer.starts_text(id)
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed, or nothing."""
        return self._decoder.decode(b"", final=True)
