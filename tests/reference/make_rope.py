"""Makes rope.npz: what transformers computes with every kind of RoPE scaling.

    python tests/reference/make_rope.py

Needs the [reference] extra. For each of ``rope_cases.MODELS`` the logits at ``POSITIONS`` of its
tokens, float32; for each of ``rope_cases.PUBLISHED`` the frequencies, float32, and what cos and sin
are multiplied by. Prints how far each scaling moves the logits of the tiny model: a case without
effect would prove nothing.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from helpers.rope_cases import MODELS, PUBLISHED, make_scaled_checkpoint  # noqa: E402
from helpers.tiny_cases import case_named  # noqa: E402
from reference import transformers_forward  # noqa: E402
from transformers import LlamaConfig  # noqa: E402
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402

POSITIONS = (0, 1, 9, 30, 55)


def logits_of(name: str, folder: Path) -> np.ndarray[Any, Any]:
    """float32 (len(POSITIONS), n_vocab)."""
    model = transformers_forward.load_model(make_scaled_checkpoint(name, folder))
    ids = case_named(MODELS[name][0]).token_ids
    return transformers_forward.logits(model, ids)[list(POSITIONS)]


def frequencies_of(name: str) -> tuple[np.ndarray[Any, Any], float]:
    """The frequencies, float32 (dim / 2,), and the factor of cos and sin."""
    head_dim, changes, context = PUBLISHED[name]
    config = LlamaConfig(hidden_size=4 * head_dim, num_attention_heads=4, **changes)
    compute = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]]
    frequencies, magnitude = compute(config, seq_len=context)
    return frequencies.numpy(), magnitude


def main() -> None:
    """Writes rope.npz beside this file."""
    stored: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        for i, name in enumerate(MODELS):
            stored[name] = logits_of(name, Path(folder) / str(i))
            moved = np.abs(stored[name] - stored["plain"]).max() / np.abs(stored["plain"]).max()
            print(f"{name:24} moves the logits by {moved:.2f} of the largest")
    for name in PUBLISHED:
        frequencies, magnitude = frequencies_of(name)
        stored[name] = np.append(frequencies, np.float32(magnitude))
    np.savez_compressed(HERE / "rope.npz", **stored)


if __name__ == "__main__":
    main()
