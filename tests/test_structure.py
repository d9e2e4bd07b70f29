"""The house: few loose files, imports that run one way, tensors named in few places."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOPS = ("q4run", "kernels", "convert", "bench")
MOST_LOOSE_FILES = {"q4run": 15, "bench": 8, "convert": 12, "kernels": 12}
MOST_PARAMETERS = 8
# The public `load`; what draws with a library's own many words; training code in torch.
MANY_PARAMETERS = {"load"}
# Rooms from the bottom up: a file imports only from its own and lower ones.
FLOORS = [
    [
        "q4run.errors",
        "q4run.sizes",
        "q4run.timeline",
        "q4run.registry",
        "q4run.kernels",
        "q4run.gguf_file",
        "q4run.text",
    ],
    ["q4run.machine", "q4run.models", "q4run.disk", "q4run.events"],
    ["q4run.weights", "q4run.box", "q4run.cache", "q4run.experts"],
    ["q4run.layers"],
    ["q4run.generation", "q4run.budget", "q4run.inspection"],
]
TENSOR_NAME = re.compile(
    r"blk\.|token_embd|output_norm|output\.weight|rope_freqs|attn_(q|k|v|output|norm)\b"
    r"|ffn_(gate|up|down|norm|gate_inp)\b|_exps|_shexp"
)
MOST_FILES_WITH_TENSOR_NAMES = 6


def modules() -> Iterator[tuple[str, Path]]:
    """Every module by the name that it is imported under."""
    for top in TOPS:
        package = top if top == "q4run" else f"q4run.{top}"
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            yield ".".join([package, *parts]), path


MODULES = dict(modules())


def imports_of(name: str, path: Path) -> set[str]:
    """The modules of the project that are imported as a module is: what it says at its top."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return {other for other in found if other in MODULES and other != name}


IMPORTS = {name: imports_of(name, path) for name, path in MODULES.items()}


@pytest.mark.parametrize("top", TOPS)
def test_few_files_lie_loose(top):
    loose = [path.name for path in (ROOT / top).glob("*.py")]
    assert len(loose) <= MOST_LOOSE_FILES[top], sorted(loose)


def test_no_circle_of_imports():
    left = {name: set(needed) for name, needed in IMPORTS.items()}
    while ready := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in ready:
            del left[name]
    assert not left, f"these import each other: {sorted(left)}"


def floor_of(name: str) -> int | None:
    for floor, rooms in enumerate(FLOORS):
        if any(name == room or name.startswith(f"{room}.") for room in rooms):
            return floor
    return None


def test_no_import_runs_up():
    upwards = []
    for name, needed in IMPORTS.items():
        if (floor := floor_of(name)) is None:
            continue
        for other in needed - {"q4run"}:
            above = floor_of(other)
            if above is None or above > floor:
                upwards.append(f"{name} -> {other}")
    assert not upwards


def test_the_runtime_imports_neither_converter_nor_benchmarks():
    tops = ("q4run.convert", "q4run.bench")
    allowed = ("q4run.cli", *tops)
    for name, needed in IMPORTS.items():
        if not name.startswith(allowed):
            assert not [other for other in needed if other.startswith(tops)], name


def test_kernels_know_nothing_above_them():
    for name, needed in IMPORTS.items():
        if name.startswith("q4run.kernels"):
            others = [other for other in needed if not other.startswith("q4run.kernels")]
            assert set(others) <= {"q4run.errors"}, name


def test_functions_take_few_parameters():
    long = []
    for name, path in MODULES.items():
        if name.startswith(("q4run.kernels", "q4run.bench.tiny_llama4")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name not in MANY_PARAMETERS:
                parameters = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                count = len([one for one in parameters if one.arg not in ("self", "cls")])
                if count > MOST_PARAMETERS:
                    long.append(f"{name}.{node.name}: {count}")
    assert not long


def literals(path: Path) -> Iterator[str]:
    """Texts in a module's code, its docstrings left out."""
    tree = ast.parse(path.read_text())
    prose = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            prose.add(id(node.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def test_tensors_are_named_in_few_places():
    named = [
        name
        for name, path in MODULES.items()
        if not name.startswith("q4run.bench.tiny_llama4")
        and any(TENSOR_NAME.search(text) for text in literals(path))
    ]
    assert len(named) <= MOST_FILES_WITH_TENSOR_NAMES, named
