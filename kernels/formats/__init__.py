"""The GGUF tensor types q4run has kernels for, one file each."""

from q4run.kernels.formats import bf16, f16, f32, q4_0, q8_0, tq1_0, tq2_0
from q4run.kernels.formats.base import Format, all_formats, find_format, find_format_named

__all__ = [
    "Format",
    "all_formats",
    "bf16",
    "f16",
    "f32",
    "find_format",
    "find_format_named",
    "q4_0",
    "q8_0",
    "tq1_0",
    "tq2_0",
]
