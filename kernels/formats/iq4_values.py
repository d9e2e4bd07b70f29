"""The 16 values that the 4-bit codes of IQ4_NL and IQ4_XS stand for, denser around zero."""

import gguf
import numpy as np

from q4run.kernels.compile import inline
from q4run.kernels.formats.nibbles import nibbles
from q4run.kernels.simd.lowering import BIAS
from q4run.kernels.simd.ops import byte_table

VALUES = np.array(gguf.quants.IQ4_NL.kvalues, np.float32)
_biased_value = byte_table([value + BIAS for value in gguf.quants.IQ4_NL.kvalues])


@inline
def biased_values(weights, at):
    """What the codes of eight interleaved rows stand for, in the form of ``simd.ops.biased``."""
    c0, c1, c2, c3, c4, c5, c6, c7 = nibbles(weights, at)
    return (
        _biased_value(c0),
        _biased_value(c1),
        _biased_value(c2),
        _biased_value(c3),
        _biased_value(c4),
        _biased_value(c5),
        _biased_value(c6),
        _biased_value(c7),
    )
