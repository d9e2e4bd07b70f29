"""Runs a checkpoint folder in Hugging Face transformers: float32, eager attention, no cache."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from reference.numpy_forward import load_checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, Llama4ForCausalLM

Logits = np.ndarray[Any, np.dtype[np.float32]]


def versions() -> dict[str, str]:
    """The versions that a stored result depends on."""
    return {
        "numpy": np.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def load_model(folder: Path, **changes: Any) -> torch.nn.Module:
    """The language model of a checkpoint, with `changes` made to its configuration.

    Raises `ValueError` when the tensors do not match the model one to one.
    """
    # Scout's own rope scaling (high == low) draws a warning on every load.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(folder)
    conditional = config.model_type == "llama4"
    config = config.text_config if conditional else config
    for key, value in changes.items():
        setattr(config, key, value)
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    if conditional:
        model = Llama4ForCausalLM._from_config(config, **options)
        weights = load_checkpoint(folder)[1]
        state = {name: torch.from_numpy(value).float() for name, value in weights.items()}
        model.load_state_dict(state, strict=True)
        return model.eval()
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, config=config, output_loading_info=True, **options
    )
    problems = {key: sorted(names) for key, names in info.items() if names}
    if problems:
        raise ValueError(f"{folder.name}: the tensors do not fit the model: {problems}")
    return model.eval()


@torch.no_grad()
def logits(model: torch.nn.Module, token_ids: list[int]) -> Logits:
    """(tokens, vocab) float32, from one forward pass over the whole sequence."""
    return model(torch.tensor([token_ids]), use_cache=False).logits[0].float().numpy()
