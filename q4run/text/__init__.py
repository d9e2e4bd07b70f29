"""Between text and token ids: tokenizers built from a GGUF's own vocabulary, chat templates.

Knows nothing of tensors or models; reads only the metadata mapping of an opened file.
"""
