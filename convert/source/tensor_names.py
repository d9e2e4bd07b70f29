"""What programs put before the names of a language model's tensors, and what they leave away."""

import re

# The first pattern that matches is replaced; the names of `transformers` are left as they are.
_FORMS = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        # A model of text and images, as older and as newer programs nest it.
        (r"(?:model\.)?language_model\.model\.", "model."),
        (r"(?:model\.)?language_model\.lm_head\.", "lm_head."),
        (r"(?:model\.)?language_model\.", "model."),
        # The decoder alone, without the head that makes a language model of it.
        (r"(layers\.\d+\.|embed_tokens\.|norm\.)", r"model.\1"),
    )
)


def plain_name(name: str) -> str:
    """Returns the name that `transformers` gives the tensor in a model of text alone."""
    for pattern, plain in _FORMS:
        if match := pattern.match(name):
            return match.expand(plain) + name[match.end() :]
    return name
