"""What a model says as it comes: the answer to its stream, reasoning to standard error."""

import sys
from typing import TextIO

from q4run.terminal import AnswerWriter
from q4run.text.reasoning import Kind, Part


class PartWriter:
    """Writes the parts of one answer; reasoning is dimmed in a terminal, and ends before a line
    that begins the answer.

    trim: the answer begins at its first letter.
    """

    def __init__(self, stream: TextIO, *, trim: bool = False) -> None:
        self._answer = AnswerWriter(stream)
        self._reasoning = AnswerWriter(sys.stderr, dim=True)
        self._trim = trim
        self._is_reasoning = False

    def write(self, part: Part) -> None:
        """Adds a part; what can be shown is shown at once."""
        if part.kind is Kind.REASONING:
            self._is_reasoning = True
            self._reasoning.write(part.text)
            return
        text = part.text.lstrip() if self._trim and not self._answer.has_written else part.text
        if text:
            self._end_reasoning()
            self._answer.write(text)

    def end(self, *, new_line: bool) -> None:
        """Shows what was held back; ``new_line`` also ends a line that is not ended yet."""
        self._end_reasoning()
        self._answer.end(new_line=new_line)

    def _end_reasoning(self) -> None:
        if self._is_reasoning:
            self._reasoning.end(new_line=True)
            self._is_reasoning = False
