"""The search for a block's scales, minima and codes with the least (weighted) squared error.

A tile is 256 values of one stream of blocks, eight groups of 32 side by side: SIMD lanes are
groups, so that eight searches run at once and none sees another's values. ``symmetric`` searches
the scale of a group, ``affine`` scale and minimum; ``shared_scale`` and ``shared_minimum`` bring
the groups of a K-quant's block onto scales that are few bits times one f16; ``ternary`` solves its
blocks exactly. All search the scale as it will be stored, rounded.
"""
