"""Files that are written: their layout, their bytes block by block, and what survives an
interruption.
"""
