"""The training texts: task dialogues and story books, cleaned, cut up and split.

Held out, and never trained on: every hundredth dialogue and one whole book.
"""

import re
from dataclasses import dataclass
from pathlib import Path

Message = tuple[str, str]  # role ("user" or "assistant"), content
Dialogue = list[Message]

HELD_OUT_EVERY = 100
HELD_OUT_BOOK = "se_hugh-lofting_the-story-of-doctor-dolittle.txt"
FABLES = "se_aesop_fables_v-s-vernon-jones.txt"
# The first is there in another edition too, the second is a play.
LEFT_OUT = (
    "gitenberg_Just-So-Stories_2781.txt",
    "se_oscar-wilde_the-importance-of-being-earnest.txt",
)

_PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "‑": "-", "\u00a0": " ", "_": None})
_TITLE_END = re.compile(r"[.!?,;:)\"'—…-]$")
_NUMBER = re.compile(r"(?:chapter |part )?[ivxlc]+\.?|\d+\.?", re.IGNORECASE)
_MAX_TITLE = 70
_MIN_STORY = 200
_SMALL_WORDS = ("a", "an", "and", "at", "by", "for", "from", "his", "in", "of", "on", "the", "to")
# What follows is notes or the publisher's.
_ENDS = ("OYEZ-OYEZ-OYEZ", "End of the Project Gutenberg")
_NO_STORIES = ("PREFACE", "INTRODUCTION", "CONTENTS", "CONTENTS:", "TABLE OF CONTENTS")


@dataclass(frozen=True)
class Story:
    """A story or chapter: its title (empty where it has none) and its paragraphs."""

    title: str
    paragraphs: list[str]
    is_fable: bool

    @property
    def text(self) -> str:
        return "\n\n".join(self.paragraphs)


@dataclass(frozen=True)
class Split:
    """Dialogues and stories of one side: trained on, or held out."""

    dialogues: list[Dialogue]
    stories: list[Story]


def read_corpus(folder: Path) -> tuple[Split, Split]:
    """(trained on, held out) from `sgd_dialogues.txt` and `fables/*.txt` in `folder`."""
    dialogues = read_dialogues(folder / "sgd_dialogues.txt")
    is_held = [i % HELD_OUT_EVERY == HELD_OUT_EVERY // 2 for i in range(len(dialogues))]
    trained, held = Split([], []), Split([], [])
    for dialogue, out in zip(dialogues, is_held, strict=True):
        (held if out else trained).dialogues.append(dialogue)
    for path in sorted((folder / "fables").glob("*.txt")):
        if path.name not in LEFT_OUT:
            (held if path.name == HELD_OUT_BOOK else trained).stories.extend(read_book(path))
    return trained, held


def read_dialogues(path: Path) -> list[Dialogue]:
    """Dialogues stand between empty lines; a line without a speaker continues the one before."""
    dialogues = []
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        dialogue: Dialogue = []
        for line in block.split("\n"):
            speaker, mark, content = line.partition(": ")
            if mark and speaker in ("User", "Assistant"):
                dialogue.append((speaker.lower(), _plain(content)))
            elif dialogue:
                role, so_far = dialogue.pop()
                dialogue.append((role, f"{so_far}\n{_plain(line)}"))
        dialogues.append([(role, content.strip()) for role, content in dialogue])
    return dialogues


def read_book(path: Path) -> list[Story]:
    """The stories of a book, or its chapters; what precedes the first title is left out."""
    paragraphs = _paragraphs(path)
    stories: list[Story] = []
    title = ""
    body: list[str] = []
    for paragraph in paragraphs:
        if not _is_title(paragraph):
            body.append(paragraph)
            continue
        if sum(map(len, body)) < _MIN_STORY:
            # Contents, numerals and headings above headings: the last heading counts.
            body = []
        else:
            stories.append(Story(title, body, path.name == FABLES))
            body = []
        title = "" if _NUMBER.fullmatch(paragraph) else _title_case(paragraph)
    if sum(map(len, body)) >= _MIN_STORY:
        stories.append(Story(title, body, path.name == FABLES))
    return [story for story in stories if story.title.upper() not in _NO_STORIES]


def _paragraphs(path: Path) -> list[str]:
    """Plain paragraphs: hard line breaks undone (not those of verse), typography made plain."""
    text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
    is_wrapped = path.name.startswith("gitenberg_")
    result = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line.rstrip() for line in block.split("\n") if line.strip()]
        is_verse = all(line.startswith((" ", "\t")) for line in lines)
        joined = " ".join(line.strip() for line in lines) if is_wrapped and not is_verse else ""
        plain = _plain(joined or "\n".join(line.strip() for line in lines))
        if plain.startswith(_ENDS):
            break
        if plain:
            result.append(plain)
    return result


def _plain(text: str) -> str:
    """Straight quotes, as the dialogues have; dashes as dashes; no marks of emphasis."""
    text = text.translate(_PLAIN).replace("--", "—")
    return re.sub(r"[ \t]+", " ", text).strip()


def _is_title(paragraph: str) -> bool:
    if "\n" in paragraph or len(paragraph) > _MAX_TITLE or paragraph[0] in "\"'*[(":
        return False
    if paragraph.isupper() or _NUMBER.fullmatch(paragraph):
        return True
    return paragraph[0].isupper() and not _TITLE_END.search(paragraph)


def _title_case(title: str) -> str:
    """THE FOX AND THE CAT -> The Fox and the Cat; other titles stay as they are."""
    if not title.isupper():
        return title
    words = title.lower().split(" ")
    return " ".join(
        word if i and word in _SMALL_WORDS else "-".join(map(str.capitalize, word.split("-")))
        for i, word in enumerate(words)
    )
