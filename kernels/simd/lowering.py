"""The chosen target's way of emitting the operations that differ between machines."""

from importlib import import_module
from typing import Any

from q4run.kernels.compiling.target import TARGET

_target = import_module(f"q4run.kernels.simd.{TARGET}")

dot_unsigned = _target.dot_unsigned
# Signed bytes are made ``BIAS`` larger where the target's dot wants one operand unsigned.
BIAS: int = _target.BIAS
dot_biased = _target.dot_biased
half_to_float = _target.half_to_float
float_to_half = _target.float_to_half
look_up = _target.look_up
# Only where sums of two products are cheaper to add up in 16 bits.
multiply_pairs: Any = getattr(_target, "multiply_pairs", None)
sum_pairs: Any = getattr(_target, "sum_pairs", None)
# Only where the machine multiplies small matrices.
dot_matrix: Any = getattr(_target, "dot_matrix", None)
