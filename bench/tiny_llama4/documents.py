"""Token sequences to train on: dialogues, and stories as chats or plain text, in batches."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count, islice

import numpy as np

from q4run.bench.tiny_llama4.corpus import Dialogue, Split, Story
from q4run.bench.tiny_llama4.tokenizer import ChatEncoder

MAX_TOKENS = 768
# Documents that wait for a batch with room for them.
_POOL = 64
# One in so many dialogues begins with a greeting.
_GREETED = 40
_GREETINGS: list[tuple[str, str]] = [
    ("Hello!", "Hello! How can I help you?"),
    ("Hi", "Hi! What can I do for you?"),
    ("Hi there!", "Hello! How may I help you today?"),
    ("Good morning", "Good morning! What can I do for you?"),
    ("How are you?", "I am fine, thank you. How can I help you?"),
    (
        "Who are you?",
        "I am a very small language model. I can talk about restaurants, travel, films, music "
        "and the weather, and I can tell you a fable.",
    ),
    (
        "What can you do?",
        "I can help you to find a restaurant, a hotel, a flight, a film or a song, I can tell "
        "you about the weather, and I can tell you a fable. What would you like?",
    ),
]
_FABLE_REQUESTS = (
    "Tell me a fable.",
    "Please tell me a fable.",
    "Can you tell me a short story?",
    "I would like to hear a fable.",
)
_FABLE_REQUESTS_ABOUT = (
    "Tell me a fable about {}.",
    "Tell me the fable of {}.",
    "Do you know a story about {}?",
    "Can you tell me a fable about {}?",
    "I would like to hear a fable about {}.",
)
_STORY_REQUESTS_ABOUT = (
    "Tell me the story of {}.",
    "Do you know the story of {}?",
    "Tell me a story about {}.",
    "Please tell me a fairy tale: {}.",
)


@dataclass(frozen=True)
class Batch:
    """Documents one after another: `ids` int64 (tokens + documents,); `lengths` in tokens.

    A document of n + 1 ids is n tokens: each predicts the next id.
    """

    ids: np.ndarray
    lengths: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        return sum(self.lengths)

    def inputs_and_targets(self) -> tuple[np.ndarray, np.ndarray]:
        """Both int64 (tokens,): all ids but each document's last, all but its first."""
        ends = np.cumsum(np.array(self.lengths) + 1)
        starts = ends - np.array(self.lengths) - 1
        return np.delete(self.ids, ends - 1), np.delete(self.ids, starts)


class TrainingStream:
    """The training batches of all epochs, the same for the same seed."""

    def __init__(self, encoder: ChatEncoder, split: Split, seed: int) -> None:
        self._encoder, self._split, self._seed = encoder, split, seed
        self._dialogues = encoder.encode_dialogues(split.dialogues)
        self._pieces = [story_pieces(encoder, story) for story in split.stories]

    def batches(self, batch_tokens: int) -> Iterator[tuple[int, Batch]]:
        """(epoch, batch) without end."""
        for epoch in count():
            for batch in pack(self.epoch(epoch), batch_tokens):
                yield epoch, batch

    def epoch(self, epoch: int) -> list[list[int]]:
        """All dialogues and stories, in a new order; fables as text and told on two requests."""
        chance = random.Random(f"{self._seed} {epoch}")
        documents = [self._greeted(ids, chance) for ids in self._dialogues]
        for story, pieces in zip(self._split.stories, self._pieces, strict=True):
            if story.is_fable:
                documents += [*pieces, self._told(story, chance), self._told(story, chance)]
            elif story.title and chance.random() < 0.5:
                documents += [self._told(story, chance), *pieces[1:]]
            else:
                documents += pieces
        chance.shuffle(documents)
        return [ids[: MAX_TOKENS + 1] for ids in documents]

    def _greeted(self, ids: list[int], chance: random.Random) -> list[int]:
        if chance.randrange(_GREETED):
            return ids
        asked, answered = chance.choice(_GREETINGS)
        greeting: Dialogue = [("user", asked), ("assistant", answered)]
        return self._encoder.encode_dialogues([greeting])[0] + ids[1:]

    def _told(self, story: Story, chance: random.Random) -> list[int]:
        """A request, and the story as the answer: a fable under its title, with its end."""
        answer = f"{story.title}\n\n{story.text}" if story.is_fable else story.text
        dialogue: Dialogue = [("user", request_for(story, chance)), ("assistant", answer)]
        return self._encoder.encode_dialogues([dialogue])[0]


def request_for(story: Story, chance: random.Random) -> str:
    """What a user may say to hear the story."""
    topic = re.sub(r"^The\b", "the", story.title)
    if not story.is_fable:
        return chance.choice(_STORY_REQUESTS_ABOUT).format(topic)
    topic = topic.lower()
    kind = chance.random()
    if kind < 0.2:
        return chance.choice(_FABLE_REQUESTS)
    if kind < 0.6:
        topic = re.sub(r"\bthe (\w)", lambda match: _article(match[1]), topic)
    return chance.choice(_FABLE_REQUESTS_ABOUT).format(topic)


def _article(letter: str) -> str:
    return f"an {letter}" if letter in "aeio" else f"a {letter}"


def story_pieces(encoder: ChatEncoder, story: Story) -> list[list[int]]:
    """The story as plain text of at most `MAX_TOKENS` a piece, cut between paragraphs.

    Every piece begins with bos; the last ends with the end of text.
    """
    title = [story.title] if story.title else []
    paragraphs = [encoder.encode(f"{text}\n\n") for text in [*title, *story.paragraphs]]
    pieces: list[list[int]] = [[]]
    for ids in paragraphs:
        room = MAX_TOKENS - 1 - len(pieces[-1])
        if len(ids) > room and pieces[-1]:
            pieces.append([])
        for start in range(0, len(ids), MAX_TOKENS - 1):
            if start:
                pieces.append([])
            pieces[-1] += ids[start : start + MAX_TOKENS - 1]
    # The empty line after the last paragraph is no part of the story.
    pieces[-1] = pieces[-1][: -len(encoder.encode("\n\n"))]
    return [[encoder.bos, *piece] for piece in pieces[:-1]] + [
        [encoder.bos, *pieces[-1], encoder.end_of_text]
    ]


def held_out_documents(encoder: ChatEncoder, split: Split) -> dict[str, list[list[int]]]:
    """The held-out documents by kind, whole dialogues and pieces of stories."""
    stories = chain.from_iterable(story_pieces(encoder, story) for story in split.stories)
    return {"dialogues": encoder.encode_dialogues(split.dialogues), "stories": list(stories)}


def pack(documents: list[list[int]], batch_tokens: int) -> Iterator[Batch]:
    """Batches of whole documents in order, filled up with the next that fit best.

    A document longer than `batch_tokens` is a batch of its own.
    """
    coming = iter(documents)
    pool: list[list[int]] = []
    chosen: list[list[int]] = []
    room = batch_tokens
    while True:
        pool += islice(coming, _POOL - len(pool))
        fitting = [i for i, document in enumerate(pool) if len(document) - 1 <= room]
        if fitting and fitting[0] == 0:
            index = 0
        elif fitting:
            index = max(fitting, key=lambda i: len(pool[i]))
        elif chosen:
            yield _batch(chosen)
            chosen, room = [], batch_tokens
            continue
        elif pool:
            index = 0
        else:
            return
        document = pool.pop(index)
        chosen.append(document)
        room -= len(document) - 1


def _batch(documents: list[list[int]]) -> Batch:
    ids = np.array(list(chain.from_iterable(documents)), np.int64)
    return Batch(ids, tuple(len(document) - 1 for document in documents))
