"""The chat template of a checkpoint -> ``tokenizer.chat_template``."""

import re
from pathlib import Path
from typing import Any

import gguf

from q4run.convert.config import read_file, read_json
from q4run.errors import FormatError

Keys = gguf.Keys.Tokenizer


def add_chat_template(metadata: gguf.GGUFWriter, folder: Path) -> None:
    """Adds the template, or several by name, if the checkpoint has any.

    Looked for where ``transformers`` does and in its order: ``chat_template.jinja``,
    ``chat_template.json``, ``tokenizer_config.json``.
    """
    template = _find_template(folder)
    if isinstance(template, str):
        metadata.add_chat_template(template)
        return
    # Not the writer's own way with several: it lists their names in an order that chance decides.
    others = []
    for entry in template or []:
        if entry["name"] == "default":
            metadata.add_chat_template(entry["template"])
            continue
        name = re.sub(r"[^A-Za-z0-9]", "_", entry["name"])
        metadata.add_string(Keys.CHAT_TEMPLATE_N.format(name=name), entry["template"])
        others.append(name)
    metadata.add_array(Keys.CHAT_TEMPLATES, others)


def _find_template(folder: Path) -> str | list[dict[str, str]] | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return read_file(path).decode("utf-8")
        except ValueError as error:
            raise FormatError(f"{path}: cannot be read: {error}") from None
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = folder / name
        template = read_json(path).get("chat_template") if path.is_file() else None
        if template is not None:
            return _checked(template, path)
    return None


def _checked(template: Any, path: Path) -> str | list[dict[str, str]]:
    """One template, or a list of objects with ``name`` and ``template``."""
    if isinstance(template, str):
        return template
    if isinstance(template, list) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("template"), str)
        for entry in template
    ):
        return template
    raise FormatError(f"{path}: chat_template is neither text nor a list of named templates")
