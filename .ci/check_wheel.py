"""Checks what is in a wheel: every module of the checkout in its place, the data, and no tests.

python .ci/check_wheel.py dist/q4run-VERSION-py3-none-any.whl
"""

import sys
from pathlib import Path
from zipfile import ZipFile

CHECKOUT = Path(__file__).resolve().parents[1]
# By folder of the checkout: where it is installed.
ROOTS = {"q4run": "q4run", "kernels": "q4run/kernels", "convert": "q4run/convert"} | {
    "bench": "q4run/bench"
}
DATA = (
    "q4run/py.typed",
    "q4run/box/tiny-llama4.gguf",
    "q4run/box/MODEL_CARD.md",
    "q4run/bench/recorded/tiny-llama4.npy",
)


def faults(names: set[str]) -> list[str]:
    """What is absent from a wheel with files of these names, or too much in it."""
    modules = {
        f"{installed}/{path.relative_to(CHECKOUT / root).as_posix()}"
        for root, installed in ROOTS.items()
        for path in (CHECKOUT / root).rglob("*.py")
    }
    found = {name for name in names if name.endswith(".py")}
    absent = sorted((modules | set(DATA)) - names)
    surplus = sorted(found - modules)
    strange = sorted(name for name in names if not name.startswith(("q4run/", "q4run-")))
    return [
        *(f"absent: {name}" for name in absent),
        *(f"not of the checkout: {name}" for name in surplus),
        *(f"outside of q4run: {name}" for name in strange if name not in surplus),
    ]


def main() -> None:
    (path,) = sys.argv[1:]
    with ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
    found = faults(names)
    print(f"{path}: {len(names)} files", *found, sep="\n")
    if found:
        sys.exit(1)


if __name__ == "__main__":
    main()
