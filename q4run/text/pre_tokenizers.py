"""How text is cut into words before byte-level BPE, by the name in ``tokenizer.ggml.pre``.

The regular expressions are those of the models' own ``tokenizer.json`` files. Which names share
one, which take a whole-word vocabulary hit before any merge, and which start with BOS when the
file does not say, is what llama.cpp's ``src/llama-vocab.cpp`` does. llama.cpp approximates two of
them (it has no ``\\p{Lu}``, no ``(?i:``): texts with letters outside ASCII may be cut elsewhere
there; here the model's own tokenizer decides.
"""

from dataclasses import dataclass

from q4run.errors import UnsupportedError

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"

LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _TAIL
)

# llama.cpp's own, for files that name no pre-tokenizer.
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")


@dataclass(frozen=True)
class PreTokenizer:
    """One way of cutting text into words.

    ``patterns`` apply in turn: each cuts every piece of the one before it into its matches and
    what lies between them. ``ignore_merges``: a word that is itself a token becomes that token
    without looking at the merges. ``add_bos``: a text starts with BOS unless the file says no.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


def _by_name() -> dict[str, PreTokenizer]:
    groups = {
        "default": PreTokenizer(DEFAULT),
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 lfm2": PreTokenizer(
            (LLAMA3,), ignore_merges=True, add_bos=True
        ),
        "dbrx smaug-bpe chatglm-bpe glm4": PreTokenizer((LLAMA3,)),
        "llama4 gpt-4o kanana2": PreTokenizer((O200K,)),
        "gpt-2 phi-2 olmo mpt jais exaone4 gigachat mellum": PreTokenizer((GPT2,)),
        "qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez": PreTokenizer((QWEN2,)),
    }
    return {name: pre for names, pre in groups.items() for name in names.split()}


PRE_TOKENIZERS = _by_name()


def find_pre_tokenizer(name: str) -> PreTokenizer:
    """The pre-tokenizer that ``tokenizer.ggml.pre`` names; ``UnsupportedError`` if unknown."""
    if name not in PRE_TOKENIZERS:
        raise UnsupportedError(
            f"pre-tokenizer {name[:80]!r} (tokenizer.ggml.pre) is not supported; "
            f"known: {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    return PRE_TOKENIZERS[name]
