"""Functions on f32x8 that LLVM has no instruction for."""

from q4run.kernels.compiling.compile import inline
from q4run.kernels.simd.casts import bits_float, to_int
from q4run.kernels.simd.ops import (
    add,
    divide,
    fma,
    maximum,
    minimum,
    mul,
    round_even,
    shift_left,
    splat,
    sub,
)
from q4run.kernels.simd.vector import f32x8, i32x8


@inline
def exp(x):
    """e^x lane by lane, within 2 ulp for -87 <= x <= 88 and clamped to that range.

    x = n ln 2 + r with |r| <= ln 2 / 2 (ln 2 in two parts), then a polynomial for e^r and n in
    the exponent bits; coefficients of the Cephes library's expf (Moshier, 1989).
    """
    x = minimum(maximum(x, splat(f32x8, -87.0)), splat(f32x8, 88.0))
    n = round_even(mul(x, splat(f32x8, 1.44269504088896341)))
    r = fma(n, splat(f32x8, -0.693359375), x)
    r = fma(n, splat(f32x8, 2.12194440e-4), r)
    p = splat(f32x8, 1.9875691500e-4)
    p = fma(p, r, splat(f32x8, 1.3981999507e-3))
    p = fma(p, r, splat(f32x8, 8.3334519073e-3))
    p = fma(p, r, splat(f32x8, 4.1665795894e-2))
    p = fma(p, r, splat(f32x8, 1.6666665459e-1))
    p = fma(p, r, splat(f32x8, 5.0000001201e-1))
    p = fma(mul(r, r), p, add(r, splat(f32x8, 1.0)))
    power = bits_float(shift_left(add(to_int(n), splat(i32x8, 127)), 23))
    return mul(p, power)


@inline
def silu(x):
    """x / (1 + e^-x) lane by lane (Elfwing et al., arXiv:1702.03118)."""
    return times_sigmoid(x, x)


@inline
def gelu(x):
    """GELU lane by lane, in tanh's approximation (Hendrycks & Gimpel, arXiv:1606.08415).

    x * (1 + tanh(t)) / 2 is x * sigmoid(2 t), t = sqrt(2 / pi) * (x + 0.044715 x^3).
    """
    cubic = fma(mul(mul(x, x), x), splat(f32x8, 0.044715), x)
    return times_sigmoid(x, mul(cubic, splat(f32x8, 1.5957691216057308)))


@inline
def times_sigmoid(x, y):
    """x / (1 + e^-y) lane by lane."""
    one = splat(f32x8, 1.0)
    return divide(x, add(one, exp(sub(splat(f32x8, 0.0), y))))
