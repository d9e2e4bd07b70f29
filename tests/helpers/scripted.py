"""A sampler that says what it is told to."""

from collections.abc import Sequence
from typing import Any


class Script:
    """Gives token ids one after the other, or raises an exception in the place of one."""

    def __init__(self, *said: int | BaseException | type[BaseException]) -> None:
        self.said = list(said)

    def sample(self, logits: Any, history: Sequence[int]) -> int:
        token = self.said.pop(0)
        if isinstance(token, int):
            return token
        raise token
