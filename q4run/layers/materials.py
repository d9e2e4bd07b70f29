"""What the parts of layers are made from."""

from typing import NamedTuple, Protocol

import numpy as np

from q4run.experts.policies import Key
from q4run.experts.store import ExpertStore
from q4run.kernels.threads.pool import Pool
from q4run.layers.workspace import Workspace
from q4run.models.config import ModelConfig
from q4run.weights import WeightReader


class Guesser(Protocol):
    """Experts that guess what they will want, from the stream of an earlier layer."""

    def guess(self, pool: Pool, x: np.ndarray) -> list[Key]:
        """Returns likely experts for the stream x, float32 (1, n_embd)."""
        ...


class Materials(NamedTuple):
    """``following``: the next experts that a pass comes to; None behind the last."""

    weights: WeightReader
    config: ModelConfig
    store: ExpertStore
    workspace: Workspace
    following: Guesser | None = None
