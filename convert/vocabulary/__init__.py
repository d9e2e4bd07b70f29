"""The tokenizer and the chat template, from a checkpoint's files into GGUF metadata."""
