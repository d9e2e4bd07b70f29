"""Attention over blocks of keys, and the kinds of keys and values."""
