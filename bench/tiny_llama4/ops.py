"""The model's operations with their gradients, on any number of documents laid end to end.

Gradients of weights go where the weight says, in float32, and not through autograd: batches add up
there, and another process can read them. Activations are in the type of the weights.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

_HEAD_ROWS = 512


@dataclass
class Weight:
    """A weight as it is computed with, and where its gradient is added (float32, same shape)."""

    value: Tensor
    grad: Tensor


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight = weight
        return x @ weight.value.T

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        ctx.weight.grad.add_(dy.T @ x)
        return dy @ ctx.weight.value, None


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x (tokens, inputs) times weight (outputs, inputs) -> (tokens, outputs)."""
    return _Linear.apply(x, weight)


class _Embedding(Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Weight, tracked: Tensor) -> Tensor:
        ctx.ids, ctx.weight = ids, weight
        return weight.value[ids].float()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, None, None]:
        ctx.weight.grad.index_add_(0, ctx.ids, dy)
        return None, None, None


def embedding(ids: Tensor, weight: Weight) -> Tensor:
    """Rows of weight (vocabulary, n) as float32 (tokens, n)."""
    # An input that wants a gradient, or autograd would not come back here.
    return _Embedding.apply(ids, weight, torch.empty(0, requires_grad=True))


class _RmsNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight, eps: float, dtype: torch.dtype) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=1, keepdim=True).square_()
        scale = scale.div_(x.shape[1]).add_(eps).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(normed, scale)
        ctx.weight = weight
        return (normed * weight.value).to(dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        normed, scale = ctx.saved_tensors
        dy = dy.float()
        ctx.weight.grad.add_((dy * normed).sum(0))
        dx = dy.mul(ctx.weight.value)
        along = (dx * normed).mean(1, keepdim=True)
        return dx.addcmul_(normed, along, value=-1).mul_(scale), None, None, None


def rms_norm(x: Tensor, weight: Weight, eps: float, dtype: torch.dtype) -> Tensor:
    """x (tokens, n) over its root mean square, times weight (n,), as `dtype`."""
    return _RmsNorm.apply(x, weight, eps, dtype)


class _Permute(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return dy.index_select(0, ctx.inverse), None, None


def permute(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Rows of x in another order; `inverse` undoes it."""
    return _Permute.apply(x, order, inverse)


class _FeedForward(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate_up: Weight, down: Weight, counts: tuple[int, ...]
    ) -> Tensor:
        both = _products(x, gate_up.value.transpose(1, 2), counts)
        gate, up = both.chunk(2, 1)
        hidden = torch.nn.functional.silu(gate).mul_(up)
        ctx.save_for_backward(x, both, hidden)
        ctx.gate_up, ctx.down, ctx.counts = gate_up, down, counts
        return _products(hidden, down.value.transpose(1, 2), counts)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        x, both, hidden = ctx.saved_tensors
        _add_products(ctx.down.grad, dy, hidden, ctx.counts)
        dhidden = _products(dy, ctx.down.value, ctx.counts)
        gate, up = both.chunk(2, 1)
        dboth = torch.empty_like(both)
        dgate, dup = dboth.chunk(2, 1)
        torch.mul(dhidden, torch.nn.functional.silu(gate), out=dup)
        dgate.copy_(torch.ops.aten.silu_backward(dhidden.mul_(up), gate))
        _add_products(ctx.gate_up.grad, dboth, x, ctx.counts)
        return _products(dboth, ctx.gate_up.value, ctx.counts), None, None, None


def _products(x: Tensor, matrices: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The first counts[0] rows of x times matrices[0] (inputs, outputs), and so on."""
    y = x.new_empty(len(x), matrices.shape[2])
    for rows, part, matrix in zip(y.split(counts), x.split(counts), matrices, strict=True):
        torch.mm(part, matrix, out=rows)
    return y


def _add_products(grads: Tensor, dy: Tensor, x: Tensor, counts: tuple[int, ...]) -> None:
    for grad, dy_part, part in zip(grads, dy.split(counts), x.split(counts), strict=True):
        grad.add_(dy_part.T @ part)


def feed_forward(x: Tensor, gate_up: Weight, down: Weight, counts: tuple[int, ...]) -> Tensor:
    """SwiGLU of several experts: the first counts[0] rows of x go through the first, and so on.

    x (tokens, n_embd); gate_up (experts, 2 n_ff, n_embd), the gate's rows first; down (experts,
    n_embd, n_ff) -> (tokens, n_embd).
    """
    return _FeedForward.apply(x, gate_up, down, counts)


class _HeadLoss(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Weight, targets: Tensor, scale: float) -> Tensor:
        total = torch.zeros(())
        dhidden = torch.empty_like(hidden)
        for start in range(0, len(hidden), _HEAD_ROWS):
            rows = slice(start, start + _HEAD_ROWS)
            logits = (hidden[rows] @ weight.value.T).float()
            target = targets[rows, None]
            largest = logits.logsumexp(1, keepdim=True)
            total += (largest - logits.gather(1, target)).sum()
            dlogits = logits.sub_(largest).exp_()
            dlogits.scatter_add_(1, target, torch.full(target.shape, -1.0))
            dlogits = dlogits.to(hidden.dtype)
            dhidden[rows] = dlogits @ weight.value
            weight.grad.add_(dlogits.T @ hidden[rows], alpha=scale)
        ctx.save_for_backward(dhidden.mul_(scale))
        return total * scale

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor, None, None, None]:
        (dhidden,) = ctx.saved_tensors
        return dhidden * dloss, None, None, None


def head_loss(hidden: Tensor, weight: Weight, targets: Tensor, scale: float) -> Tensor:
    """`scale` times the sum of the cross-entropies of `targets` (tokens,), in nats.

    hidden (tokens, n_embd); weight (vocabulary, n_embd). The weight's gradient is added at once,
    for a loss that this is a plain term of, so that no batch's logits are held.
    """
    return _HeadLoss.apply(hidden, weight, targets, scale)


def cross_entropies(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """(tokens,) float32, in nats; without gradients."""
    parts = [
        torch.nn.functional.cross_entropy((rows @ weight.T).float(), wanted, reduction="none")
        for rows, wanted in zip(hidden.split(_HEAD_ROWS), targets.split(_HEAD_ROWS), strict=True)
    ]
    return torch.cat(parts)
