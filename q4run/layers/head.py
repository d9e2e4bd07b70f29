"""The head: the last norm, and logits over the vocabulary."""

import numpy as np

from q4run.kernels.head import output_head
from q4run.kernels.products.products import PRODUCT
from q4run.kernels.threads.pool import Pool
from q4run.layers.workspace import Workspace, flat_input, if_useful
from q4run.models.config import ModelConfig
from q4run.weights import WeightReader


class Head:
    """The last norm, and logits over the vocabulary."""

    def __init__(self, weights: WeightReader, config: ModelConfig, w: Workspace) -> None:
        norm = config.head.tensors(config.n_embd)[0]
        self._matrix = weights.matrix(config.head.matrix(config.n_embd))
        self._normed = w.experts.normed
        self._normed_int8 = if_useful(w.experts.normed_int8, self._matrix.fmt)
        self._product = np.zeros(1, PRODUCT)
        self._product[0]["matrix"] = self._matrix.record
        self._product[0]["input"] = flat_input(self._normed, self._normed_int8)
        self._norm = weights.vector(norm)
        self._eps = np.float32(config.rms_norm_eps)
        self._divisor, self._soft_cap = config.head.divisor, config.head.soft_cap

    def __call__(self, pool: Pool, x: np.ndarray, logits: np.ndarray) -> None:
        """Fills logits, float32 (n_tokens, n_vocab), from x, float32 (n_tokens, n_embd)."""
        output_head(
            pool, x, self._norm, self._eps, self._product, self._normed, self._normed_int8, logits
        )
        shape_logits(logits, self._divisor, self._soft_cap)


def shape_logits(logits: np.ndarray, divisor: float, soft_cap: float | None) -> None:
    """Divides logits, float32 of any shape, and keeps them within the cap, in place."""
    if divisor != 1:
        logits /= np.float32(divisor)
    if soft_cap is not None:
        logits /= np.float32(soft_cap)
        np.tanh(logits, out=logits)
        logits *= np.float32(soft_cap)
