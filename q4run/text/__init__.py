"""Between text and token ids: tokenizers built from a GGUF's own vocabulary, chat templates.

Also texts from files, and their windows. Knows nothing of tensors or models; of an opened GGUF
reads only the metadata mapping.
"""

# Tokens in a window of a text, where nothing else is asked for: llama-perplexity's number too.
DEFAULT_WINDOW = 512
