"""SIMD vectors for numba kernels, compiled for the machine at hand.

``vector`` has the types, ``memory`` loads and stores, ``ops`` the arithmetic, ``casts`` the
conversions and ``math`` what is built from them. ``target`` chooses the instructions once; the file
named after it (or ``generic``) emits the operations that differ, with the helpers in ``emit``.
"""
