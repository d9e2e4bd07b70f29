"""The text to calibrate with, as windows of tokens."""

from pathlib import Path

import numpy as np

from q4run.errors import Error
from q4run.text.files import read_text
from q4run.text.tokenizer import Tokenizer
from q4run.text.windows import cut_windows


def read_windows(
    path: Path, tokenizer: Tokenizer, context: int, most: int | None = None
) -> np.ndarray:
    """int32 (n_windows, context): the tokens of a UTF-8 text, as ``cut_windows`` cuts them.

    Control tokens that are written out in the text are read as such (llama-imatrix does so with
    ``--parse-special``): a chat model is to be calibrated on chats. Raises ``Error`` for a text
    that cannot be read or does not fill one window.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise Error(f"{path}: cannot be read: {error.strerror or error}") from None
    ids = tokenizer.encode(text, special=True)
    return cut_windows(tokenizer, ids, context, most, name=str(path))
