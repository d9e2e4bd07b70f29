"""The decoder and its layers, built on kernels; they know no family."""
