"""Which tokens end an answer: those that a file names, and those whose text says so."""

from collections.abc import Mapping
from typing import Any

from q4run.text.keys import STOP_IDS_KEY, read_ids, read_token_id

# Texts that end a generation whatever the file says of them: llama.cpp's list, and what it knows
# only by an id: Llama 4's <|eot|> and <|eom|>.
_END_LIST = """
</s> <eos> <EOT> _<EOT> [EOT] [EOS] [e~[
<|eot_id|> <|eom_id|> <|eot|> <|eom|> <|im_end|> <|end|> <|return|> <|call|> <|calls|>
<|flush|> <|endoftext|> <|end_of_text|> <end_of_turn> <end_of_utterance> <turn|>
<|tool_response> <｜end▁of▁sentence｜>
<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]
<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>
"""
_END_TEXTS = frozenset(_END_LIST.split())
_END_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
# GLM's models end a turn with the role that comes next, and its files name one id of three.
_GLM_ROLES = frozenset({"<|user|>", "<|observation|>"})
_GLM_MARK = "[gMASK]"


def stops_by_key(metadata: Mapping[str, Any], n_vocab: int, eos_id: int | None) -> frozenset[int]:
    """Returns the tokens that a file's keys name as ends, q4run's own key among them."""
    ids = {read_token_id(metadata, key, n_vocab, None) for key in _END_KEYS} | {eos_id}
    return read_ids(metadata, STOP_IDS_KEY, n_vocab) | {id for id in ids if id is not None}


def stops_by_text(ids: Mapping[str, int]) -> frozenset[int]:
    """Returns the tokens whose text alone says that they end a generation."""
    found = {text for text in _END_TEXTS if text in ids}
    if _GLM_MARK in ids and ids.keys() >= _GLM_ROLES:
        found |= _GLM_ROLES
    # In these vocabularies <|end|> ends a message within an answer, and </s> is an ordinary text.
    if {"<|return|>", "<|call|>"} <= found or {"<|calls|>", "<|flush|>"} <= found:
        found.discard("<|end|>")
    if "<|tool_response>" in found:
        found.discard("</s>")
    return frozenset(ids[text] for text in found)
