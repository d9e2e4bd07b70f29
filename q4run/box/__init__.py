"""The model in the box: what runs where no model is named. MODEL_CARD.md says what it is."""

from pathlib import Path

MODEL = Path(__file__).parent / "tiny-llama4.gguf"
DESCRIPTION = "a demonstration of 22 M parameters"
