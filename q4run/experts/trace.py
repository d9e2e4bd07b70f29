"""Recording which experts were wanted, for ``bench/measure/cache.py`` to replay.

JSON lines. The first is ``{"q4run_trace": 1, "layers": [...], "n_expert": [...], "n_expert_used":
[...]}``, with an entry for each layer that has experts. Each further line is a pass of one token or
a batch, ``[n_tokens, [[experts of the first layer], [of the second], ...]]``, each expert once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from os import SEEK_CUR
from pathlib import Path
from typing import Any

from q4run.errors import Error

VERSION = 1
_START = b'{"q4run_trace"'


class TraceWriter:
    """A trace being written: a pass goes to the file, whole, once its last layer was told of."""

    def __init__(
        self, path: Path, layers: Sequence[int], n_expert: Sequence[int], n_used: Sequence[int]
    ) -> None:
        """layers: the numbers of those with experts, rising; the counts: one for each of them.

        Raises Error where the path cannot be written or holds something else than a trace.
        """
        self._path = path
        self._layers = list(layers)
        self._n_tokens = 0
        self._experts: list[list[int]] = []
        try:
            if path.is_file() and path.stat().st_size:
                with open(path, "rb") as file:
                    if file.read(len(_START)) != _START:
                        raise Error(f"{path}: is there already and is no trace; give another name")
            self._file = open(path, "wb", buffering=0)  # noqa: SIM115 (see close)
        except OSError as error:
            raise self._cannot_write(error) from error
        header = {
            "q4run_trace": VERSION,
            "layers": self._layers,
            "n_expert": list(n_expert),
            "n_expert_used": list(n_used),
        }
        try:
            self._write(header)
        except BaseException:
            self._file.close()
            raise

    def begin_pass(self, n_tokens: int) -> None:
        """A pass of ``n_tokens`` begins; one cut short before its last layer is dropped."""
        self._n_tokens = n_tokens
        self._experts = []

    def layer(self, layer: int, experts: Iterable[int]) -> None:
        """The experts that a layer wants; layers come in their order. The last writes the pass.

        Raises Error where the file cannot be written.
        """
        if len(self._experts) == len(self._layers) or layer != self._layers[len(self._experts)]:
            raise ValueError(f"layer {layer} is not the next of the pass")
        self._experts.append(sorted(experts))
        if len(self._experts) == len(self._layers):
            self._write([self._n_tokens, self._experts])

    def close(self) -> None:
        self._file.close()

    def _write(self, content: Any) -> None:
        line = json.dumps(content, separators=(",", ":")).encode() + b"\n"
        try:
            if (written := self._file.write(line)) != len(line):
                self._file.seek(-(written or 0), SEEK_CUR)
                self._file.truncate()
                raise OSError("no space is left for a whole line")
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> Error:
        return Error(f"{self._path}: cannot be written: {error.strerror or error}")
