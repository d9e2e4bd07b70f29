"""What stands around the layers: embedding, head, and what divides RoPE's frequencies."""

from dataclasses import dataclass

from gguf import MODEL_TENSOR

from q4run.models.parts.tensors import Role, Tensor
from q4run.models.rope import Rope


@dataclass(frozen=True)
class Embedding:
    """The table of token embeddings; ``scale``: what they are multiplied by."""

    n_vocab: int
    scale: float = 1.0

    def tensors(self, n_embd: int) -> list[Tensor]:
        """Returns the table."""
        return [Tensor(MODEL_TENSOR.TOKEN_EMBD, (self.n_vocab, n_embd), Role.EMBEDDING)]


@dataclass(frozen=True)
class Head:
    """The last norm, and logits over the vocabulary; ``tied``: by the embedding table.

    Logits are divided by ``divisor``, then kept within ``soft_cap`` by its tanh where it is set.
    """

    n_vocab: int
    tied: bool
    divisor: float = 1.0
    soft_cap: float | None = None

    def tensors(self, n_embd: int) -> list[Tensor]:
        """Returns the norm and, unless it is tied, the output matrix."""
        norm = Tensor(MODEL_TENSOR.OUTPUT_NORM, (n_embd,), Role.NORM)
        return [norm] if self.tied else [norm, self.matrix(n_embd)]

    def matrix(self, n_embd: int) -> Tensor:
        """Returns the matrix that gives the logits."""
        if self.tied:
            return Embedding(self.n_vocab).tensors(n_embd)[0]
        return Tensor(MODEL_TENSOR.OUTPUT, (self.n_vocab, n_embd), Role.OUTPUT)


def rope_tensors(rope: Rope) -> list[Tensor]:
    """Returns what divides the frequencies of a rotation: lists of one factor a pair."""
    return [Tensor(kind, (rope.dim // 2,), Role.ROPE_FACTORS) for kind in rope.factors]
