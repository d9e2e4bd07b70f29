"""The model's own vocabulary: byte-level BPE with Llama 4's special tokens and chat format."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import ByteLevel as ByteLevelProcessor
from tokenizers.processors import Sequence, TemplateProcessing

from q4run.bench.tiny_llama4.corpus import Dialogue
from q4run.text.patterns import O200K

VOCAB_SIZE = 4096
BOS, END_OF_TEXT, EOT = "<|begin_of_text|>", "<|end_of_text|>", "<|eot|>"
HEADER_START, HEADER_END, PAD = "<|header_start|>", "<|header_end|>", "<|finetune_right_pad|>"
SPECIAL_TOKENS = (
    BOS,
    END_OF_TEXT,
    HEADER_START,
    HEADER_END,
    "<|eom|>",
    EOT,
    PAD,
    "<|reserved_special_token_0|>",
)
ROLES = ("system", "user", "assistant")

CHAT_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|header_start|>' + message['role'] + '<|header_end|>\n\n' }}"
    "{{- message['content'] | trim }}{{- '<|eot|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|header_start|>assistant<|header_end|>\n\n' }}{%- endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """BPE over the bytes of `texts`; the last ids of `vocab_size` are the special tokens."""
    (pattern,) = O200K.patterns
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_with_roles(texts), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = Sequence(
        [
            ByteLevelProcessor(trim_offsets=False),
            TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[bos]),
        ]
    )
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"too little text for {vocab_size} tokens: {tokenizer.get_vocab_size()}")
    return tokenizer


def _with_roles(texts: Iterable[str]) -> Iterable[str]:
    """The texts, and every role often enough to become one token."""
    yield from texts
    for role in ROLES:
        for _ in range(10000):
            yield role


class ChatEncoder:
    """Texts and dialogues to token ids; what a text spells out is never a special token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        self.bos, self.end_of_text = self.id_of(BOS), self.id_of(END_OF_TEXT)
        self._eot = self.id_of(EOT)
        start, end, empty_line = (
            self.id_of(HEADER_START),
            self.id_of(HEADER_END),
            self.encode("\n\n"),
        )
        self._headers = {role: [start, *self.encode(role), end, *empty_line] for role in ROLES}

    def id_of(self, token: str) -> int:
        """Raises `ValueError` for what is no token."""
        token_id = self.tokenizer.token_to_id(token)
        if token_id is None:
            raise ValueError(f"{token!r} is no token")
        return token_id

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without bos."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_dialogues(self, dialogues: list[Dialogue]) -> list[list[int]]:
        """As `CHAT_TEMPLATE` renders them, from bos to the last message's eot."""
        contents = [content.strip() for dialogue in dialogues for _, content in dialogue]
        encoded = iter(self.tokenizer.encode_batch_fast(contents, add_special_tokens=False))
        result = []
        for dialogue in dialogues:
            ids = [self.bos]
            for role, _ in dialogue:
                ids += [*self._headers[role], *next(encoded).ids, self._eot]
            result.append(ids)
        return result

    def is_text(self, ids: list[int]) -> list[bool]:
        """For each id whether it is text: neither a special token nor within a chat header.

        The empty line that ends a header belongs to it.
        """
        special = {self.id_of(token) for token in SPECIAL_TOKENS}
        start, end = self.id_of(HEADER_START), self.id_of(HEADER_END)
        n_empty_line = len(self.encode("\n\n"))
        result = []
        in_header, n_after = False, 0
        for token in ids:
            in_header = token == start or (in_header and token != end)
            result.append(not (token in special or in_header or n_after))
            n_after = n_empty_line if token == end else max(n_after - 1, 0)
        return result


def write_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """`tokenizer.json` and `tokenizer_config.json` with the chat template."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOT,
        "pad_token": PAD,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": context,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
