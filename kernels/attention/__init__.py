"""Attention over blocks of keys: a layer's heads, the rows of its cache and their kinds."""
