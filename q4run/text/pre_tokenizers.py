"""How text is cut into words before BPE, by the name in ``tokenizer.ggml.pre``.

The regular expressions are those of the models' own ``tokenizer.json`` files, except where a
backtracking matcher takes the squared length of a long run for them: there stands one that cuts
alike in linear time, and the published one beside it. Which names share a row, which take a
whole-word vocabulary hit before any merge, and which start with BOS when the file does not say, is
what llama.cpp's ``src/llama-vocab.cpp`` does. llama.cpp approximates some of them (it has no
``\\p{Lu}``, no ``(?i:``): texts with letters outside ASCII may be cut elsewhere there; here the
model's own tokenizer decides.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from q4run.errors import Error, UnsupportedError
from q4run.text.patterns import (
    AFMOE,
    BAILING,
    BLOOM,
    CHAMELEON,
    DEEPSEEK_CODER,
    DEEPSEEK_LLM,
    DEEPSEEK_V3,
    DIGIT,
    EXAONE_MOE,
    FALCON,
    GPT2,
    JAIS2,
    KIMI_K2,
    LINES,
    LLAMA3,
    LLAMA_CPP_DEFAULT,
    MINICPM5,
    O200K,
    QWEN2,
    QWEN35,
    SEED_CODER,
    SPARK,
    SUPERBPE,
    TEKKEN,
    TINY_AYA,
    UFAKZEKA,
    YOUTU,
    Cuts,
)

# Where a text may be cut before it is tokenised, whatever stands farther on: between two words, and
# between a line and the next.
_LINE_START = r"(?<=\S\n)(?=[^\W\d_])"
WORDS_AND_LINES = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])|" + _LINE_START)
ONLY_LINES = re.compile(_LINE_START)
AFTER_NEWLINES = re.compile(r"(?<=\n)(?=[^\n])")


@dataclass(frozen=True)
class PreTokenizer:
    """One way of cutting text into words, and the names that stand for it.

    ``cuts.patterns`` apply in turn: each cuts every piece of the one before it into its matches and
    what lies between them. ``ignore_merges``: a word that is itself a token becomes that token
    without looking at the merges. ``add_bos``: a text starts with BOS unless the file says no.
    ``byte_level``: the vocabulary spells bytes in the GPT-2 alphabet; without, it holds UTF-8 with
    "▁" for a space, and byte tokens for what it lacks. ``safe_cut``: where a long text may be cut
    beforehand (None: nowhere). The converter writes the first of ``names``.
    """

    names: tuple[str, ...]
    cuts: Cuts
    ignore_merges: bool = False
    add_bos: bool = False
    byte_level: bool = True
    safe_cut: re.Pattern[str] | None = WORDS_AND_LINES


def _row(
    names: str, cuts: Cuts, *, ignore_merges: bool = False, add_bos: bool = False
) -> PreTokenizer:
    return PreTokenizer(tuple(names.split()), cuts, ignore_merges, add_bos)


_LLAMA3_NAMES = "llama-bpe llama3 llama-v3 falcon3 falcon-h1 lfm2 pixtral midm-2.0 jina-v5-nano"
_GPT2_NAMES = (
    "gpt-2 phi-2 olmo mpt jais exaone4 gigachat mellum a.x-4.0 trillion granite-docling"
    " modern-bert jina-es jina-de jina-v2-es jina-v2-de"
)
_QWEN2_NAMES = "qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez solar-open grok-2 kormo f2llmv2"
_STARCODER_NAMES = "smollm starcoder refact command-r codeshell exaone mellum2 minerva-7b"

ROWS = (
    _row("default", LLAMA_CPP_DEFAULT),
    _row(_LLAMA3_NAMES, LLAMA3, ignore_merges=True, add_bos=True),
    _row("dbrx smaug-bpe chatglm-bpe glm4", LLAMA3),
    _row(_QWEN2_NAMES, QWEN2),
    _row("qwen35", QWEN35),
    _row("llama4 gpt-4o kanana2 talkie minimax-m2", O200K),
    _row("granite-embed-multi-97m", O200K, ignore_merges=True),
    _row("tekken", TEKKEN, ignore_merges=True, add_bos=True),
    _row(_GPT2_NAMES, GPT2),
    _row(_STARCODER_NAMES, DIGIT + GPT2),
    _row("deepseek-v3 hunyuan-dense joyai-llm hy_v4", DEEPSEEK_V3),
    _row("deepseek-llm", DEEPSEEK_LLM),
    _row("deepseek-coder", DEEPSEEK_CODER),
    _row("kimi-k2", KIMI_K2),
    _row("bailingmoe2 bailingmoe llada-moe", BAILING),
    _row("laguna", LINES + QWEN2),
    _row("tiny_aya cohere2moe", TINY_AYA + O200K),
    _row("afmoe", AFMOE),
    _row("youtu", YOUTU, ignore_merges=True),
    _row("seed-coder", SEED_CODER),
    _row("minicpm5", MINICPM5, ignore_merges=True),
    _row("jais-2 jais2", JAIS2),
    _row("spark2_5", SPARK),
    _row("ufakzeka", UFAKZEKA),
    _row("falcon", FALCON),
    _row("chameleon", CHAMELEON, add_bos=True),
    _row("bloom poro-chat poro gpt3-finnish", BLOOM),
    _row("viking", BLOOM + DIGIT),
    PreTokenizer(("exaone-moe",), EXAONE_MOE, safe_cut=ONLY_LINES),
    PreTokenizer(("superbpe",), SUPERBPE, safe_cut=None),
    PreTokenizer(
        ("gemma4", "granite-embed-multi-311m"),
        LINES,
        add_bos=True,
        byte_level=False,
        safe_cut=AFTER_NEWLINES,
    ),
    PreTokenizer(("sarvam-moe",), LINES, byte_level=False, safe_cut=AFTER_NEWLINES),
)
PRE_TOKENIZERS = {name: row for row in ROWS for name in row.names}


def find_pre_tokenizer(name: str) -> PreTokenizer:
    """Returns the pre-tokenizer of a name; raises ``UnsupportedError`` where there is none."""
    if name not in PRE_TOKENIZERS:
        raise UnsupportedError(
            f"pre-tokenizer {name[:80]!r} (tokenizer.ggml.pre) is not supported; the nearest known:"
            f" {', '.join(_nearest_names(name))}; force one with --pre NAME if you know which it is"
        )
    return PRE_TOKENIZERS[name]


def check_name(name: str) -> None:
    """Raises ``Error`` for a name that a person gives and no pre-tokenizer has."""
    if name not in PRE_TOKENIZERS:
        nearest = ", ".join(_nearest_names(name))
        raise Error(f"there is no pre-tokenizer {name[:80]!r}; the nearest known: {nearest}")


def _nearest_names(name: str) -> list[str]:
    """Up to three known names, those spelled most like ``name`` first."""
    return difflib.get_close_matches(name[:80], PRE_TOKENIZERS, n=3, cutoff=0.0)


class Recognised(NamedTuple):
    """A pre-tokenizer found by its patterns, and whether its row does as the file asks."""

    pre_tokenizer: PreTokenizer
    same_merging: bool


def recognise(
    patterns: Sequence[str], *, ignore_merges: bool, byte_level: bool = True
) -> Recognised | None:
    """Returns the row whose patterns, here or as published, are these; None where none is.

    Among rows with the same patterns the one that treats merges as ``ignore_merges`` says comes
    first.
    """
    wanted = tuple(_normalised(pattern) for pattern in patterns)
    rows = [row for row in ROWS if row.byte_level == byte_level and wanted in _spellings(row)]
    rows.sort(key=lambda row: row.ignore_merges != ignore_merges)
    return Recognised(rows[0], rows[0].ignore_merges == ignore_merges) if rows else None


def _spellings(row: PreTokenizer) -> list[tuple[str, ...]]:
    """The sequences of patterns that stand for a row, each pattern normalised."""
    return [
        tuple(_normalised(pattern) for pattern in patterns)
        for patterns in (row.cuts.patterns, *row.cuts.published)
    ]


def _normalised(pattern: str) -> str:
    """One spelling for patterns that differ only in how they are written."""
    pattern = re.sub(r"\\u\{?([0-9A-Fa-f]{4})\}?", lambda code: chr(int(code[1], 16)), pattern)
    pattern = pattern.replace("\r", r"\r").replace("\n", r"\n").replace(r"\p{N}{1}", r"\p{N}")
    for contractions in (r"'(?i:[sdmt]|ll|ve|re)", r"(?i:'s|'t|'re|'ve|'m|'d|'ll)"):
        pattern = pattern.replace(contractions, r"(?i:'s|'t|'re|'ve|'m|'ll|'d)")
    # Possessive where nothing could be given back anyway.
    return pattern.replace("?+", "?").replace("++", "+")
