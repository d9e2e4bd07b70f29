"""What is installed: every package of the checkout, in its place, under one version."""

import importlib.util
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import q4run

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
# By top folder: the package that it is installed as.
TOPS = {"q4run": "q4run", "kernels": "q4run.kernels"} | {
    top: f"q4run.{top}" for top in ("convert", "bench")
}


def packages_on_disk() -> set[str]:
    """The folders with modules, and those that hold only data that is installed."""
    found = set(SETUPTOOLS["package-data"])
    for top, package in TOPS.items():
        for file in (ROOT / top).rglob("*.py"):
            found.add(".".join([package, *file.relative_to(ROOT / top).parts[:-1]]))
    return found


def check_wheel():
    spec = importlib.util.spec_from_file_location("check_wheel", ROOT / ".ci/check_wheel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files_of_a_wheel(module) -> set[str]:
    """As a complete wheel has them."""
    modules = {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / top).as_posix()}"
        for top, package in TOPS.items()
        for path in (ROOT / top).rglob("*.py")
    }
    return modules | set(module.DATA) | {"q4run-0.1.0.dist-info/METADATA"}


def test_the_packages_are_the_folders_on_disk():
    assert sorted(packages_on_disk()) == SETUPTOOLS["packages"]


def test_every_top_folder_of_the_package_has_its_place():
    assert {f"q4run.{top}": top for top in TOPS if top != "q4run"} == SETUPTOOLS["package-dir"]


def test_every_folder_of_modules_says_that_it_is_a_package():
    for package in packages_on_disk() - set(SETUPTOOLS["package-data"]):
        assert importlib.util.find_spec(package).origin.endswith("__init__.py"), package


def test_there_is_one_version():
    assert "version" not in PYPROJECT["project"]
    assert version("q4run") == q4run.__version__
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[(Unreleased|{re.escape(q4run.__version__)})\]", changes, re.M)


def test_a_complete_wheel_has_no_fault():
    module = check_wheel()
    assert module.faults(files_of_a_wheel(module)) == []


@pytest.mark.parametrize(
    "name",
    ["q4run/py.typed", "q4run/box/tiny-llama4.gguf", "q4run/kernels/simd/emit.py"],
)
def test_what_a_wheel_lacks_is_a_fault(name):
    module = check_wheel()
    assert module.faults(files_of_a_wheel(module) - {name}) == [f"absent: {name}"]


@pytest.mark.parametrize("name", ["tests/test_package.py", "q4run/tests/test_box.py", "kernels/x"])
def test_what_a_wheel_has_too_much_is_a_fault(name):
    module = check_wheel()
    (fault,) = module.faults(files_of_a_wheel(module) | {name})
    assert fault.endswith(f": {name}")
