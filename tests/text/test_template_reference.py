"""Chat templates as ``transformers`` renders them, byte for byte."""

import re
from pathlib import Path
from typing import Any

import pytest
from helpers.chat_templates import CONVERSATIONS, RICH, TEXT_ONLY, VARIABLES

from q4run.text.chat_template import ChatTemplate

pytestmark = pytest.mark.reference
TOKENS = {"bos_token": "<BOS>", "eos_token": "<EOS>"}


def n_equal(source: str) -> int:
    """The number of renderings that are equal; fails for any that is not and ought to be."""
    pytest.importorskip("transformers", reason="transformers comes with the [reference] extra")
    from transformers.utils.chat_template_utils import render_jinja_template

    template, equal = ChatTemplate(source, **TOKENS), 0
    for name, messages in CONVERSATIONS.items():
        if name == "parts" and not template.input.parts:
            continue  # where transformers fails or shows Python's list
        for variables in VARIABLES:
            for prompt in (True, False):
                given: dict[str, Any] = {"add_generation_prompt": prompt, **variables}
                try:
                    texts = render_jinja_template(
                        [messages], chat_template=source, **TOKENS, **given
                    )[0]
                except Exception:  # of the template's own making
                    continue
                rendered = template.render(messages, **given)
                times = re.compile(r"\d\d:\d\d:\d\d")
                assert times.sub("", rendered) == times.sub("", texts[0]), (name, variables)
                equal += 1
    return equal


@pytest.mark.parametrize("source", [RICH, TEXT_ONLY], ids=["rich", "text only"])
def test_small_templates(source: str) -> None:
    assert n_equal(source) >= 80


def test_official_templates(shared_data: Path) -> None:
    paths = sorted((shared_data / "templates").glob("*.jinja"))
    assert len(paths) >= 14
    for path in paths:
        assert n_equal(path.read_text(encoding="utf-8")) >= 50, path.name
