"""Long texts through the ``tokenizers`` library piece by piece."""

import re

from tokenizers import Tokenizer

# Until a text is done the library keeps some 500 bytes for each of its tokens.
CHUNK_CHARS = 1 << 16


def encode_in_chunks(library: Tokenizer, text: str, safe_cut: re.Pattern[str] | None) -> list[int]:
    """Token ids of ``text``, encoded in pieces of about ``CHUNK_CHARS`` characters.

    ``safe_cut`` matches, with no width, the places where a cut does not change the result; a text
    without one, or with ``safe_cut`` None, goes through whole.
    """
    ids: list[int] = []
    start = 0
    while len(text) - start > CHUNK_CHARS and safe_cut is not None:
        cut = safe_cut.search(text, start + CHUNK_CHARS)
        if cut is None:
            break
        ids += library.encode(text[start : cut.start()], add_special_tokens=False).ids
        start = cut.start()
    ids += library.encode(text[start:], add_special_tokens=False).ids
    return ids
