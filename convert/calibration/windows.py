"""A text as equal runs of tokens, cut as llama.cpp's imatrix and perplexity tools cut it."""

from pathlib import Path

import numpy as np

from q4run.errors import Error
from q4run.text.tokenizer import Tokenizer

DEFAULT_CONTEXT = 512


def read_windows(
    path: Path, tokenizer: Tokenizer, context: int, most: int | None = None
) -> np.ndarray:
    """int32 (n_windows, context): the tokens of a UTF-8 text, in windows that do not overlap.

    Control tokens that are written out in the text are read as such (llama-imatrix does so with
    ``--parse-special``): a chat model is to be calibrated on chats. Where the vocabulary begins
    texts with BOS, it takes the place of the first token of every window. What is left at the end
    is not used, nor what comes after ``most`` windows. Raises ``Error`` for a text that cannot be
    read or does not fill one window.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise Error(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise Error(f"{path}: not text in UTF-8; convert it first") from None
    ids = np.array(tokenizer.encode(text, special=True), np.int32)
    n_windows = len(ids) // context
    if n_windows == 0:
        raise Error(
            f"{path}: has {len(ids)} tokens, less than one window of {context}: give a longer"
            " text, or a smaller --context"
        )
    windows = ids[: n_windows * context].reshape(n_windows, context)[:most].copy()
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        windows[:, 0] = tokenizer.bos_id
    return windows
