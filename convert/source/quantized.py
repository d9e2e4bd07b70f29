"""``quantization_config``: how a checkpoint's weights are stored, where not as plain floats."""

from dataclasses import dataclass

from q4run.convert.config import Config
from q4run.convert.source.fp8 import DEFAULT_BLOCK
from q4run.errors import UnsupportedError

# Methods whose weights are read, and what the key that says more must then be (None: any).
METHODS: dict[str, tuple[str, tuple[str, ...]] | None] = {
    "fp8": None,
    "fbgemm_fp8": None,
    "mxfp4": None,
    "modelopt": ("quant_algo", ("FP8",)),
    "compressed-tensors": (
        "format",
        ("dense", "float-quantized", "naive-quantized", "mxfp4-pack-quantized"),
    ),
}


@dataclass(frozen=True)
class Quantization:
    """``block``: rows and columns that share a scale, where scales are of blocks."""

    method: str | None = None
    block: tuple[int, int] = DEFAULT_BLOCK


def read_quantization(config: Config) -> Quantization:
    """What a ``config.json``, or the language model's part of it, says.

    Raises ``UnsupportedError`` for methods that are not read.
    """
    for section in (config, config.section("text_config")):
        if section is not None and section.section("quantization") is not None:
            raise UnsupportedError(
                f"{section.where}: the checkpoint is quantised already, by MLX, in a way that"
                " convert does not read; take the unquantised one"
            )
        entry = section.section("quantization_config") if section is not None else None
        if entry is not None:
            return _read_entry(entry)
    return Quantization()


def _read_entry(entry: Config) -> Quantization:
    method = entry.text("quant_method", "unknown")
    shown = method
    if method in METHODS:
        detail = METHODS[method]
        if detail is None:
            return Quantization(method, _block(entry))
        key, known = detail
        value = entry.text(key, known[0])
        if value in known:
            return Quantization(method, _block(entry))
        shown = f"{method}, {value}"
    raise UnsupportedError(
        f"{entry.where}: the checkpoint is quantised already ({shown[:80]}) in a way that convert "
        "does not read; take the unquantised one, or one in fp8 or mxfp4"
    )


def _block(entry: Config) -> tuple[int, int]:
    sizes = entry.items("weight_block_size", int)
    if sizes is None:
        return DEFAULT_BLOCK
    if len(sizes) != 2 or min(sizes) < 1:
        raise entry.bad("weight_block_size", "two numbers of at least 1")
    return sizes[0], sizes[1]
