"""Llama 4's attention over documents laid end to end: rotation, norms of q and k, chunks."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

_BLOCK_ROWS = 128


class _RotateAndNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rotation: Tensor, eps: float | None) -> Tensor:
        y = _rotated(x.float(), rotation)
        scale = None
        if eps is not None:
            scale = y.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
            y = y.mul_(scale)
            ctx.save_for_backward(y, scale)
        ctx.rotation = rotation
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        dx = dy.float()
        if ctx.saved_tensors:
            y, scale = ctx.saved_tensors
            along = (dx * y).mean(-1, keepdim=True)
            dx = dx.addcmul(y, along, value=-1).mul_(scale)
        return _rotated(dx, ctx.rotation.conj()).to(dy.dtype), None, None


def _rotated(x: Tensor, rotation: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2)


def rotate_and_norm(x: Tensor, rotation: Tensor, eps: float | None) -> Tensor:
    """Turns neighbouring values of x (tokens, heads, head_dim) by complex `rotation` (tokens, 1,
    head_dim / 2), then, unless `eps` is None, divides each head by its root mean square.
    """
    return _RotateAndNorm.apply(x, rotation, eps)


def rotations(positions: Tensor, head_dim: int, theta: float) -> Tensor:
    """Complex (tokens, 1, head_dim / 2) for `positions` (tokens,)."""
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = positions.float()[:, None, None] * frequencies
    return torch.polar(torch.ones_like(angles), angles)


def temperatures(positions: Tensor, floor_scale: int, attn_scale: float) -> Tensor:
    """What queries of layers without RoPE are multiplied by (arXiv:2501.19399): (tokens, 1, 1)."""
    steps = torch.floor((positions.float() + 1) / floor_scale)
    return (torch.log1p(steps) * attn_scale + 1)[:, None, None]


class _CausalAttention(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
        n_group = q.shape[1] // k.shape[1]
        out = torch.empty_like(q)
        ctx.weights = []
        for one in _stretches(lengths):
            keys, values = k[one].transpose(0, 1).contiguous(), v[one].transpose(0, 1).contiguous()
            for rows, n_seen in _blocks(one):
                scores = _by_kv_head(q[rows], n_group) @ keys[:, :n_seen].transpose(1, 2)
                weights = torch.softmax(_masked(scores, rows, one, n_group), -1)
                out[rows] = _by_token(weights @ values[:, :n_seen], n_group)
                ctx.weights.append(weights)
        ctx.save_for_backward(q, k, v)
        ctx.lengths = lengths
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = ctx.saved_tensors
        n_group = q.shape[1] // k.shape[1]
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        all_weights = iter(ctx.weights)
        for one in _stretches(ctx.lengths):
            keys, values = k[one].transpose(0, 1).contiguous(), v[one].transpose(0, 1).contiguous()
            dkeys, dvalues = torch.zeros_like(keys), torch.zeros_like(values)
            for rows, n_seen in _blocks(one):
                weights = next(all_weights)
                d = _by_kv_head(dout[rows], n_group)
                dvalues[:, :n_seen] += weights.transpose(1, 2) @ d
                dweights = d @ values[:, :n_seen].transpose(1, 2)
                dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
                dq[rows] = _by_token(dscores @ keys[:, :n_seen], n_group)
                dkeys[:, :n_seen] += dscores.transpose(1, 2) @ _by_kv_head(q[rows], n_group)
            dk[one], dv[one] = dkeys.transpose(0, 1), dvalues.transpose(0, 1)
        return dq, dk, dv, None


def _stretches(lengths: list[int]) -> Iterator[slice]:
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length


def _blocks(one: slice) -> Iterator[tuple[slice, int]]:
    """Rows of queries, and how many keys of the stretch the last of them sees."""
    for start in range(one.start, one.stop, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, one.stop)
        yield slice(start, stop), stop - one.start


def _by_kv_head(x: Tensor, n_group: int) -> Tensor:
    """(rows, heads, head_dim) -> (kv heads, heads of each * rows, head_dim)."""
    n_rows, _, head_dim = x.shape
    return (
        x.view(n_rows, -1, n_group, head_dim)
        .permute(1, 2, 0, 3)
        .reshape(-1, n_group * n_rows, head_dim)
    )


def _by_token(x: Tensor, n_group: int) -> Tensor:
    """The way back from `_by_kv_head`."""
    n_kv, _, head_dim = x.shape
    return x.view(n_kv, n_group, -1, head_dim).permute(2, 0, 1, 3).flatten(1, 2)


def _masked(scores: Tensor, rows: slice, one: slice, n_group: int) -> Tensor:
    """Hides from each row what comes after it: only its own block's keys can."""
    n_rows = rows.stop - rows.start
    block = scores.unflatten(1, (n_group, n_rows))[..., rows.start - one.start :]
    block += torch.full((n_rows, n_rows), -torch.inf, dtype=scores.dtype).triu_(1)
    return scores


def causal_attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """(tokens, heads * head_dim); q (tokens, heads, head_dim), k and v with fewer heads.

    `lengths` are the stretches of tokens that see each other: each what precedes it in its own.
    """
    return _CausalAttention.apply(q * q.shape[-1] ** -0.5, k, v, lengths).flatten(1)


def chunk_lengths(lengths: list[int], chunk_size: int) -> list[int]:
    """Documents cut at every `chunk_size` tokens: chunked attention does not look back past it."""
    return [
        min(chunk_size, length - start)
        for length in lengths
        for start in range(0, length, chunk_size)
    ]
