"""A text to calibrate with: python -m q4run.bench.measure.calibration_text --data DIR --leave-out
TEXT OUT

Dialogues in Llama 4's chat format, control tokens written out, and pieces of stories, drawn with a
fixed seed from DIR (`sgd_dialogues.txt`, `fables/*.txt`). Whatever shares one of its first two
messages, or its first line, with TEXT, on which the result is to be measured, is left out.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from q4run.bench.tiny_llama4.corpus import Dialogue, read_corpus
from q4run.bench.tiny_llama4.tokenizer import BOS, EOT, HEADER_END, HEADER_START

_STORY_CHARACTERS = 2000


def rendered(dialogue: Dialogue) -> str:
    turns = (
        f"{HEADER_START}{role}{HEADER_END}\n\n{content.strip()}{EOT}" for role, content in dialogue
    )
    return BOS + "".join(turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--leave-out", type=Path, required=True, metavar="TEXT")
    parser.add_argument("--documents", type=int, default=500, metavar="N")
    arguments = parser.parse_args()
    measured = arguments.leave_out.read_text(encoding="utf-8")
    trained_on, _ = read_corpus(arguments.data)
    dialogues = [
        rendered(dialogue)
        for dialogue in trained_on.dialogues
        if not any(content.strip() in measured for _, content in dialogue[:2])
    ]
    stories = [
        f"{BOS}{story.text[:_STORY_CHARACTERS]}"
        for story in trained_on.stories
        if story.text[:80] not in measured
    ]
    chance = random.Random(0)
    chosen = chance.sample(dialogues, min(arguments.documents, len(dialogues)))
    chosen += chance.sample(stories, min(arguments.documents // 8, len(stories)))
    chance.shuffle(chosen)
    arguments.out.write_text("\n".join(chosen), encoding="utf-8")
    print(f"{arguments.out}: {len(chosen)} documents, {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
