"""The 16 values that the 4-bit codes of IQ4_NL and IQ4_XS stand for, denser around zero."""

import gguf
import numpy as np

from q4run.kernels.formats.parts.nibbles import nibbles_of_table
from q4run.kernels.simd.compare import steps
from q4run.kernels.simd.lowering import BIAS

VALUES = np.array(gguf.quants.IQ4_NL.kvalues, np.float32)
# What the codes of eight interleaved rows stand for, in the form of ``simd.ops.biased``.
biased_values = nibbles_of_table([value + BIAS for value in gguf.quants.IQ4_NL.kvalues])
# Between two of them a number belongs to the nearer: itself, and its index.
_THRESHOLDS = (VALUES[:-1] + VALUES[1:]) / 2
nearest_value = steps(_THRESHOLDS.tolist(), VALUES.tolist())
code_of_value = steps(_THRESHOLDS.tolist(), list(range(16)))
