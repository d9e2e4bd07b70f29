"""README, docs and result pages, made from stored measurements."""
