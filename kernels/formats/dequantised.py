"""Types without kernels of their own: read by gguf's dequantiser and held in RAM as Q8_0.

Q8_0 is the smallest type whose error is small beside theirs, but takes several times their bytes.
"""

import gguf
import numpy as np

from q4run.kernels.formats import q8_0
from q4run.kernels.formats.base import Format, register_without_kernels

_NAMES = "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S NVFP4"


class Dequantised(Format):
    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):  # a file may hold scales that are no numbers
            values: np.ndarray = gguf.quants.dequantize(raw, self.ggml_type)
        return values

    @property
    def in_ram(self) -> Format:
        return q8_0.FORMAT


for _name in _NAMES.split():
    if hasattr(gguf.GGMLQuantizationType, _name):  # older packages lack the newest types
        register_without_kernels(Dequantised(gguf.GGMLQuantizationType[_name], []))
