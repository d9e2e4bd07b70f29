"""What people who convert are told of a file beside its numbers."""

from collections.abc import Iterable


def ignored_by_llama_cpp(keys: Iterable[str]) -> list[str]:
    """Returns a line about keys that llama.cpp takes no notice of, or none where there are none."""
    listed = ", ".join(keys)
    if not listed:
        return []
    return [f"llama.cpp ignores {listed}: its results with this file differ from q4run's"]
