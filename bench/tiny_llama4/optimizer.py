"""Muon for matrices, AdamW for the rest, over any share of the parameters.

Muon (Jordan et al., kellerjordan.github.io/posts/muon): the momentum's nearest orthogonal matrix,
by Newton-Schulz iterations, is the step; scaled to AdamW's usual size after Liu et al.,
arXiv:2502.16982, so that both share a learning rate and decay.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_MUON_RMS = 0.2


@dataclass(frozen=True)
class OptimizerConfig:
    """Learning rates at their peak; the schedule multiplies both."""

    muon_rate: float = 8e-3
    adam_rate: float = 4e-3
    weight_decay: float = 0.1
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-10
    newton_schulz_steps: int = 4


def uses_muon(name: str) -> bool:
    """Whether a parameter's step is Muon's: it is a matrix of features to features."""
    return not name.endswith(("norm", "router", "embedding"))


def update(
    config: OptimizerConfig,
    name: str,
    values: Tensor,
    grad: Tensor,
    state: tuple[Tensor, Tensor],
    step: int,
    schedule: float,
) -> None:
    """One step of a parameter in place; `state` holds its two moments, `step` counts from 1."""
    if uses_muon(name):
        _muon(config, values, grad, state[0], config.muon_rate * schedule)
    else:
        _adamw(config, values, grad, state, step, config.adam_rate * schedule)


def _adamw(
    config: OptimizerConfig,
    values: Tensor,
    grad: Tensor,
    state: tuple[Tensor, Tensor],
    step: int,
    rate: float,
) -> None:
    first, second = state
    beta1, beta2 = config.betas
    first.lerp_(grad, 1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    scale = (second / (1 - beta2**step)).sqrt_().add_(config.eps)
    if values.dim() > 1:
        values.mul_(1 - rate * config.weight_decay)
    values.addcdiv_(first, scale, value=-rate / (1 - beta1**step))


def _muon(
    config: OptimizerConfig, values: Tensor, grad: Tensor, momentum: Tensor, rate: float
) -> None:
    momentum.lerp_(grad, 1 - config.momentum)
    ahead = grad.lerp(momentum, config.momentum)
    step = orthogonalised(_square_parts(ahead), config.newton_schulz_steps)
    values.mul_(1 - rate * config.weight_decay)
    scale = _MUON_RMS * max(step.shape[-2:]) ** 0.5
    values.add_(step.view(values.shape), alpha=-rate * scale)


def _square_parts(matrix: Tensor) -> Tensor:
    """(..., outputs, inputs) as a stack; gate and up, one below the other, are two matrices."""
    n_out, n_in = matrix.shape[-2:]
    return matrix.reshape(-1, min(n_out, n_in), n_in)


def orthogonalised(matrices: Tensor, n_steps: int) -> Tensor:
    """Each of (n, outputs <= inputs, inputs) float32 with all singular values near 1."""
    a, b, c = _NEWTON_SCHULZ
    norms = matrices.flatten(1).norm(dim=1).clamp_(min=1e-20)
    x = (matrices / norms[:, None, None]).bfloat16()
    for _ in range(n_steps):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.float()
