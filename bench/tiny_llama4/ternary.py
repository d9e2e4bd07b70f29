"""Ternary weights that GGUF's TQ1_0 and TQ2_0 hold without loss.

After BitNet b1.58 (Ma et al., arXiv:2402.17764): a weight is -s, 0 or +s, s being the mean
magnitude, here that of each 256 values along the input dimension, which is a block of those types.
The gradient passes through the rounding as if it were not there (straight-through).
"""

import torch

BLOCK = 256
# The least normal f16: below it a bfloat16 need not be an f16.
_LEAST_SCALE = 2.0**-14


def ternarize(weights: torch.Tensor, out: torch.Tensor) -> None:
    """Writes the ternary form of float32 `weights` (..., inputs) to `out`, of the same shape.

    `inputs` is a multiple of 256. A scale is rounded to bfloat16, so that it is exact as float32,
    bfloat16 and f16 alike.
    """
    blocks = weights.view(-1, BLOCK)
    scales = blocks.abs().mean(1, keepdim=True).bfloat16().float().clamp_(min=_LEAST_SCALE)
    codes = (blocks / scales).round_().clamp_(-1, 1)
    out.view(-1, BLOCK).copy_(codes.mul_(scales))
