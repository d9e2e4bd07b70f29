"""A layer: its parts in the order in which they run."""

from dataclasses import dataclass

from q4run.models.parts.attention import Attention
from q4run.models.parts.feed_forward import Experts, FeedForward
from q4run.models.parts.tensors import Part, Tensor


@dataclass(frozen=True)
class Layer:
    """One layer: its parts run one after the other, each on the normed stream, added back to it."""

    attention: Attention
    feed_forward: FeedForward

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts in the order in which they run."""
        return (self.attention, self.feed_forward)

    @property
    def experts(self) -> Experts | None:
        """The routed experts; None where the feed-forward is dense."""
        return self.feed_forward if isinstance(self.feed_forward, Experts) else None

    def tensors(self, n_embd: int, layer: int) -> list[Tensor]:
        """Returns the tensors of all parts."""
        return [tensor for part in self.parts for tensor in part.tensors(n_embd, layer)]
