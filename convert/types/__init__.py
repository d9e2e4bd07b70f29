"""The type of each tensor, and the importance of its columns."""
