"""Quantised matrix products: with one token and with many."""
