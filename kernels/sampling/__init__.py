"""Choosing the next token: what may be drawn, and which it is."""
