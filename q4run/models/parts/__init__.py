"""The parts of a model, declared once: what each reads from a file, keeps and needs.

A layer is a list of parts. A part says which tensors it has, with names from gguf's own table, and
how many values a conversation keeps for it. Whoever wants to know (budget, plan, inspector,
converter, runtime) asks the part. Nothing here computes: the classes of `q4run.layers` run a part,
found by its type.
"""

from q4run.models.parts.attention import Attention, KeptRows, QKNorm, Temperature
from q4run.models.parts.ends import Embedding, Head, rope_tensors
from q4run.models.parts.feed_forward import (
    Activation,
    DenseFeedForward,
    Experts,
    FeedForward,
    Router,
    Scores,
    SharedExpert,
)
from q4run.models.parts.layer import Layer
from q4run.models.parts.tensors import BARE, BIAS, WEIGHT, Part, Role, Tensor, by_kind, tensor_name

__all__ = [
    "BARE",
    "BIAS",
    "WEIGHT",
    "Activation",
    "Attention",
    "DenseFeedForward",
    "Embedding",
    "Experts",
    "FeedForward",
    "Head",
    "KeptRows",
    "Layer",
    "Part",
    "QKNorm",
    "Role",
    "Router",
    "Scores",
    "SharedExpert",
    "Temperature",
    "Tensor",
    "by_kind",
    "rope_tensors",
    "tensor_name",
]
