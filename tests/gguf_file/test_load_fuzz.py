"""Files with wrong numbers in them: one clear line or a run, never a crash or a hang."""

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers.tiny_checkpoints import make_checkpoint

import q4run
from q4run.convert import convert

CASES = ["llama4_maverick", "llama4_chunk_12", "llama4_nope_pattern", "llama_rope_scaling"]
FLOATS = [0, -1, 1e30, -1e30, 1e-45, np.nan, np.inf]
INTEGERS = [0, 1, 2, 3, 7, 17, 64, 255, 65535, 1 << 20, (1 << 31) - 1, (1 << 32) - 1]


@pytest.fixture(scope="module")
def good_files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("good")
    files = {}
    for name in [*CASES, "mixtral_top_2"]:
        files[name] = folder / f"{name}.gguf"
        convert(make_checkpoint(name, folder / name), files[name], type="f32")
    return files


def wrong_files(path: Path) -> Iterator[bytes]:
    """Copies with another value for one number of the metadata, or for the first of an array."""
    good = path.read_bytes()
    reader = gguf.GGUFReader(path)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or not field.data:
            continue
        old = field.parts[field.data[0]]
        if old.dtype == np.float32:
            values: list[float] = FLOATS
        elif old.dtype in (np.uint32, np.int32):
            values = [value for value in INTEGERS if value <= np.iinfo(old.dtype).max]
        elif old.dtype == np.bool_:
            values = [0, 1]
        else:
            continue
        start = old.ctypes.data - reader.data.ctypes.data
        for value in values:
            new = np.array([value], old.dtype).tobytes()
            yield good[:start] + new + good[start + len(new) :]


def use(path: Path) -> None:
    """Loads the model and runs more tokens than fit into a small chunk."""
    with q4run.load(path, ram_budget="200M", context=64, threads=1) as model:
        model.tokenize("hello world")
        list(model.generate([1, 2, 3, 4], max_tokens=12))
        model.logits(list(range(30)))


PARTS = [0, *(pytest.param(part, marks=pytest.mark.exhaustive) for part in range(1, 4))]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", [*CASES, "mixtral_top_2"])
def test_any_number_gives_a_run_or_one_clear_line(name, part, good_files, tmp_path):
    path = tmp_path / "wrong.gguf"
    n_runs = 0
    messages: list[str] = []
    for content in islice(wrong_files(good_files[name]), part, None, len(PARTS)):
        path.unlink(missing_ok=True)  # or the file system waits for the disk
        path.write_bytes(content)
        try:
            use(path)
            n_runs += 1
        except q4run.Error as error:
            messages.append(str(error))
    assert n_runs > 5
    assert len(messages) > 5
    assert not any("\n" in message for message in messages)


def test_weights_that_are_no_numbers_give_an_error(good_files, tmp_path):
    path = tmp_path / "nan.gguf"
    shutil.copy(good_files["llama4_maverick"], path)
    reader = gguf.GGUFReader(path, "r+")
    norm = next(tensor for tensor in reader.tensors if tensor.name == "output_norm.weight")
    norm.data[:] = np.nan
    reader.data.flush()
    with q4run.load(path, context=64) as model, pytest.raises(q4run.Error, match="logit is nan"):
        list(model.generate([1, 2, 3], max_tokens=2))
