"""What is converted: a checkpoint folder or a GGUF, with its own packed types."""
