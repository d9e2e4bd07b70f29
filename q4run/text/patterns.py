"""The published regular expressions that cut text into words, in Oniguruma's syntax."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Cuts:
    """Patterns that apply in turn, and the other ways in which model files write them.

    ``published`` holds whole sequences, each of which cuts as ``patterns`` do. ``a + b`` cuts as
    ``a`` and then as ``b``.
    """

    patterns: tuple[str, ...]
    published: tuple[tuple[str, ...], ...] = ()

    def __add__(self, other: Cuts) -> Cuts:
        ours, theirs = ((one.patterns, *one.published) for one in (self, other))
        whole, *others = (first + second for first, second in product(ours, theirs))
        return Cuts(whole, tuple(others))


CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CJK = "[一-龥぀-ゟ゠-ヿ]+"


def _cased(suffix: str, upper: str = _UPPER, lower: str = _LOWER) -> str:
    """Words cut where a small letter meets a capital, each with an optional sign before it."""
    before = r"[^\r\n\p{L}\p{N}]?"
    return f"{before}{upper}*{lower}+{suffix}|{before}{upper}+{lower}*{suffix}"


def _llama3(digits: str) -> str:
    return f"{CONTRACTIONS}|{_LETTERS}|{digits}|{_SYMBOLS}|{_SPACES}"


def _o200k(suffix: str, digits: str) -> str:
    return rf"{_cased(suffix)}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


GPT2 = Cuts((r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",))
DIGIT = Cuts((r"\p{N}",))
LINES = Cuts((r"[^\n]+|[\n]+",), ((r"[^\n]+|\n+",), (r"\n+|[^\n]+",)))

LLAMA3 = Cuts((_llama3(r"\p{N}{1,3}"),))
QWEN2 = Cuts((_llama3(r"\p{N}"),))
QWEN35 = Cuts(
    (
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
        rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
    )
)
UFAKZEKA = Cuts((rf"{_LETTERS}|\p{{N}}|{_SYMBOLS}|{_SPACES}",))
BAILING = Cuts((rf"{CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_SYMBOLS}|\s*[\r\n]|\s+(?!\S)|\s+",))
SEED_CODER = Cuts(
    (rf"{CONTRACTIONS}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",),
)
MINICPM5 = Cuts((r"\p{N}{1,3}", _llama3(r"\p{N}+")))
JAIS2 = Cuts(
    (
        rf"{CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_SYMBOLS}|\s*[\r\n]+"
        + "".join(rf"|\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4))
        + r"|\s{1,2}(?!\S)|\s{1}",
    )
)
EXAONE_MOE = Cuts(
    (
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
    )
)

O200K = Cuts((_o200k(f"{CONTRACTIONS}?", r"\p{N}{1,3}"),))
TEKKEN = Cuts((_o200k("", r"\p{N}"),))
YOUTU = Cuts(
    (
        rf"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|{_CJK}",
        _o200k(f"{CONTRACTIONS}?", r"\p{N}"),
    )
)
_NO_HAN = r"&&[^\p{Han}]]"
KIMI_K2 = Cuts(
    (
        r"[\p{Han}]+|"
        + _cased(f"{CONTRACTIONS}?", _UPPER[:-1] + _NO_HAN, _LOWER[:-1] + _NO_HAN)
        + rf"|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}",
    )
)

_PUNCTUATED = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+"
)
DEEPSEEK_V3 = Cuts((r"\p{N}{1,3}", _CJK, rf"{_PUNCTUATED}[\r\n]*|{_SPACES}"))
SPARK = Cuts((r"\p{N}{1,3}", _CJK, rf"{_PUNCTUATED}|[\r\n]|\s+(?!\S)|\s+", r"\p{N}"))

# Letters of the scripts that have capitals; those that Unicode composes to others are escaped.
_BICAMERAL = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕ"
    "ἠ-ὅὈ-Ὅὐ-ὗὙὛὝ\u1f5f-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌ\u1fd0-\u1fd3\u1fd6-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126\u2128\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ"
    "Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_EAST_ASIAN = "[一-龥ࠀ-一가-퟿]+"
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_BICAMERAL}]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    _EAST_ASIAN,
)
DEEPSEEK_LLM = Cuts(
    # No piece but a line feed itself has one here, so "$" is the end.
    (*_DEEPSEEK_LLM[:3], r"(?<!\s)\s++\z", _EAST_ASIAN, r"\p{N}"),
    ((*_DEEPSEEK_LLM, r"\p{N}"), (*_DEEPSEEK_LLM, r"\p{N}+")),
)
DEEPSEEK_CODER = Cuts((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, r"\p{N}"))

# Digits in threes from the right. The published patterns look at the rest of the number from every
# digit; these look once, from its first, and go on from match to match (\G).
TINY_AYA = Cuts(
    (r"(?<!\d)\d{1,3}(?=(?:\d{3})*+\b)|\G(?<=\d)\d{3}",), ((r"\d{1,3}(?=(?:\d{3})*\b)",),)
)
_DIGITS = r"(?<!\p{Nd})\p{Nd}{1,3}(?=(?:\p{Nd}{3})*+(?!\p{Nd}))|\G(?<=\p{Nd})\p{Nd}{3}"
SUPERBPE = Cuts(
    (
        r"\p{N}+",
        r"(?<!\d)(?:\d{3}(?=(?:\d{3})++(?!\d))|(?=\d{3}(?!\d))|\d{1,2}\K(?=(?:\d{3})++(?!\d)))"
        r"|\G(?<=\d)\d{3}(?=\d)",
    ),
    ((r"\p{N}+", r"(?=(\d{3})+(?!\d))"),),
)
_ASIAN = "[一-鿿㐀-䶿\uf900-\ufaff぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+"
AFMOE = Cuts((_DIGITS, _ASIAN, rf"{_PUNCTUATED}[\r\n]*|{_SPACES}"))

BLOOM = Cuts((" ?[^(\\s|.,!?…。，、।۔،)]+",), ((" ?[^(\\s|[.,!?…。，、।۔،])]+",),))
CHAMELEON = Cuts(
    (
        "<sentinel:[0-9]+>",
        "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        r"([\t\n]|    |  )",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        *GPT2.patterns,
    )
)
FALCON = Cuts((r"[\p{P}\$\+<=>\^~\|`]+", *GPT2.patterns, "[0-9][0-9][0-9]"))
# llama.cpp's own, for files that name no pre-tokenizer.
LLAMA_CPP_DEFAULT = Cuts((r"[\p{P}\$\+<=>\^~\|]+", *GPT2.patterns, r"\p{N}+", r"[0-9][0-9][0-9]"))
