"""Numba kernels: quantised products, attention and what lies between; no I/O, no model names."""
