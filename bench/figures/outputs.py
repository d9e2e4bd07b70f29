"""Files that a measurement leaves: tried before it begins, and written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from q4run.errors import Error


def check_writable(path: Path, begins: bytes | None = None) -> None:
    """Raises Error where ``write_whole`` would fail.

    begins: what a file of that name that is there already must begin with, to be written over.
    """
    try:
        if path.is_dir():
            raise Error(f"{path}: is a folder; name a file")
        if path.exists() and not path.is_file():
            raise Error(f"{path}: is no ordinary file; give another name")
        if begins is not None and path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                if file.read(len(begins)) != begins:
                    raise Error(
                        f"{path}: is there already and is something else; give another name"
                    )
        _unfinished(path).touch()
        _unfinished(path).unlink()
    except OSError as error:
        raise _cannot_write(path, error) from error


def write_whole(path: Path, data: bytes) -> None:
    """Writes ``data``, in place of what is there. Raises Error where it cannot be written."""
    unfinished = _unfinished(path)
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name[:64]}.{os.getpid()}")


def _cannot_write(path: Path, error: OSError) -> Error:
    return Error(f"{path}: cannot be written: {error.strerror or error}")
