"""Compiling kernels once per machine, and the SIMD target they are compiled for."""
