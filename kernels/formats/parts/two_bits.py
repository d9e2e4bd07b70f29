"""2-bit codes in fours: bits 2l and 2l + 1 of byte m of each 32 are value 32 l + m of 128."""

from q4run.kernels.compiling.compile import inline


@inline
def pack_two_bits(codes, first, raw, at):
    """The lower 2 bits of 256 codes from ``codes[first]`` on, into 64 bytes from ``raw[at]`` on."""
    for half in range(2):
        for m in range(32):
            i = first + 128 * half + m
            low = codes[i] & 3 | (codes[i + 32] & 3) << 2
            raw[at + 32 * half + m] = low | (codes[i + 64] & 3) << 4 | (codes[i + 96] & 3) << 6
