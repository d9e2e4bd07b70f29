"""A text as equal runs of tokens, cut as llama.cpp's imatrix and perplexity tools cut it."""

from collections.abc import Sequence

import numpy as np

from q4run.errors import Error
from q4run.text.tokenizer import Tokenizer


def cut_windows(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    context: int,
    most: int | None = None,
    *,
    name: str = "the text",
) -> np.ndarray:
    """int32 (n_windows, context): the tokens of a text, in windows that do not overlap.

    Where the vocabulary begins texts with BOS, it takes the place of the first token of every
    window. What is left at the end is left out, as is what comes after ``most`` windows. Raises
    ``Error``, which calls the text ``name``, where it is too short for one window.
    """
    n_windows = len(ids) // context
    if n_windows == 0:
        raise Error(
            f"{name} has {len(ids)} tokens, less than one window of {context}: give a longer text,"
            " or a smaller --context"
        )
    if most is not None:
        n_windows = min(n_windows, most)
    windows = np.array(ids[: n_windows * context], np.int32).reshape(n_windows, context)
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        windows[:, 0] = tokenizer.bos_id
    return windows
