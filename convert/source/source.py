"""What is converted: a checkpoint folder, or a GGUF file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import gguf

from q4run.convert.families import plan_checkpoint
from q4run.convert.source.checkpoint import Checkpoint
from q4run.convert.source.gguf_source import GGUFSource
from q4run.convert.tensors import OutputTensor
from q4run.convert.vocabulary.vocabulary import TOKENIZER_FILES, add_vocabulary


class Source(Protocol):
    """Tensors and metadata for an output, and what the source is called and consists of."""

    name: str
    files: Sequence[Path]
    n_bytes: int
    architecture: str
    tensors: list[OutputTensor]
    notes: list[str]
    #: Bytes of the file or header that holds the tokenizer: what takes memory as it is read.
    tokenizer_bytes: int

    def write_metadata(self, pre: str | None) -> tuple[gguf.GGUFWriter, list[str]]:
        """All keys of the output but those of its types and layout, and notes on them.

        ``pre`` names the pre-tokenizer to write, in place of what the source says.
        """
        ...


def open_source(path: Path) -> Source:
    """Reads headers and configurations only, never weights.

    Raises ``FormatError`` for damaged files, ``UnsupportedError`` for an unknown kind.
    """
    if path.suffix.lower() == ".gguf" or path.is_file():
        return GGUFSource(path)
    return CheckpointSource(path)


class CheckpointSource:
    """A Hugging Face checkpoint folder, as a `Source`."""

    def __init__(self, folder: Path) -> None:
        checkpoint = Checkpoint(folder)
        self._folder = folder
        self._plan = plan_checkpoint(checkpoint)
        self.name = checkpoint.name
        self.files: Sequence[Path] = checkpoint.files
        self.n_bytes = checkpoint.n_bytes
        self.architecture = self._plan.metadata.arch
        self.tensors = self._plan.tensors
        self.notes = [*self._plan.notes, *_quantized_notes(checkpoint.quantization.method)]
        tokenizers = [folder / name for name in TOKENIZER_FILES]
        sizes = [path.stat().st_size for path in tokenizers if path.is_file()]
        self.tokenizer_bytes = max(sizes, default=0)

    def write_metadata(self, pre: str | None) -> tuple[gguf.GGUFWriter, list[str]]:
        metadata = self._plan.metadata
        metadata.add_type(gguf.GGUFType.MODEL)
        metadata.add_name(self.name)
        plan = self._plan
        notes = add_vocabulary(metadata, self._folder, plan.config, plan.n_vocab, pre)
        return metadata, notes


def _quantized_notes(method: str | None) -> list[str]:
    if method is None:
        return []
    return [
        f"the checkpoint is quantised already ({method}): what that lost is lost here too; an "
        "unquantised one converts better, where there is one"
    ]
