"""What has to be made before a stored measurement can be measured."""

import re

_VALID = "../shared/data/weights/tiny-llama4/valid.txt"
_CALIBRATION = (
    "python -m q4run.bench.measure.calibration_text calibration.txt --documents 400 --data"
    f" ../shared/data/text --leave-out {_VALID}"
)
# By the beginning of a measurement's name; \1 is what the pattern catches.
_PREPARATIONS = {
    r"speed-small-scout-(\w+)": [
        r"python -m q4run.bench.models.synthetic s12-\1.gguf --geometry small-scout --type \1"
    ],
    r"speed-avx2": [
        "python -m q4run.bench.models.synthetic s12-TYPE.gguf --geometry small-scout --type TYPE"
    ],
    r"speed-slow-memory": [
        "python -m q4run.bench.models.synthetic s12-q4_0.gguf --geometry small-scout --type q4_0"
    ],
    r"streaming-scout-slice": [
        "python -m q4run.bench.models.synthetic scout6.gguf --geometry scout --layers 6 --type q4_0"
    ],
    r"scout-109b-([a-z0-9_]+)": [
        "python -m q4run.bench.models.synthetic scout48.gguf --geometry scout --layers 48"
        r" --type \1 --vocab-size 202048"
    ],
    r"quality-tiny-llama4": [_CALIBRATION],
    r"quality-fit": [
        _CALIBRATION,
        "q4run convert tiny-llama4 f16.gguf --type f16",
        "q4run imatrix f16.gguf -f calibration.txt -o imatrix.gguf",
        "q4run convert tiny-llama4 fitted.gguf --fit 17.75M --imatrix imatrix.gguf",
    ],
}


def preparation(name: str) -> list[str]:
    """The commands, none where nothing is needed."""
    for pattern, commands in _PREPARATIONS.items():
        if match := re.match(pattern, name):
            return [match.expand(command) for command in commands]
    return []
