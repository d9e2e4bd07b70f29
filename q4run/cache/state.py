"""What every part of a layer that remembers tokens promises: keys and values now, others later."""

from typing import Protocol

import numpy as np


class LayerState(Protocol):
    """One layer's memory of a conversation. Tokens are counted from its beginning.

    A pass first asks ``room``, then calls ``begin``; then the layer's kernels write.
    """

    @property
    def n_bytes(self) -> int:
        """The memory that the state holds."""
        ...

    def room(self, length: int, n_tokens: int) -> int:
        """Returns how many of the next ``n_tokens`` one pass may append behind ``length``."""
        ...

    def begin(self, length: int, n_tokens: int) -> None:
        """Announces that a pass writes ``n_tokens`` behind ``length``; it may be broken off."""
        ...

    def can_rewind_to(self, length: int) -> int:
        """Returns the longest conversation, at most ``length`` tokens, that the state still holds.

        0 where only the beginning is left: what cannot be rewound is run again.
        """
        ...

    def rewind(self, length: int) -> None:
        """Forgets the tokens from ``length`` on, which ``can_rewind_to`` has given back."""
        ...

    def save(self, length: int) -> dict[str, np.ndarray]:
        """Returns copies of all that is needed to go on behind ``length`` tokens."""
        ...

    def load(self, arrays: dict[str, np.ndarray], length: int) -> None:
        """Takes over what ``save`` gave for ``length`` tokens.

        Raises ValueError where it is of another model or kind, or does not hold so many.
        """
        ...
