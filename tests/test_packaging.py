"""What an installation gets."""

from __future__ import annotations

import hashlib
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Of the text at https://www.apache.org/licenses/LICENSE-2.0.txt, as Debian ships it.
APACHE_2_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def requirements(extra: str | None = None) -> dict[str, Requirement]:
    project = PROJECT["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def test_base_install_has_no_torch() -> None:
    """The base install is exactly what a simulation, its results and the screens need."""
    assert set(requirements()) == {
        "matplotlib", "msgspec", "numpy", "platformdirs", "pydantic", "ruamel.yaml", "simpy",
        "textual", "typer",
    }  # fmt: skip


def test_engine_extra_takes_a_range_of_torch() -> None:
    """`[engine]` admits torch 2.11 up to, not including, 2.14, and triton on Linux only."""
    engine = requirements("engine")
    assert set(engine) == {"nvtx", "scipy", "tokenizers", "torch", "triton"}
    assert engine["torch"].specifier == SpecifierSet(">=2.11,<2.14")
    assert not engine["triton"].marker.evaluate({"sys_platform": "darwin"})
    assert engine["triton"].marker.evaluate({"sys_platform": "linux"})


def test_dev_extra_pins_torch() -> None:
    """`[dev]` pins torch, inside the range of `[engine]`, and leaves triton a range."""
    dev = requirements("dev")
    assert dev["torch"].specifier == SpecifierSet("==2.13.0")
    assert requirements("engine")["torch"].specifier.contains("2.13.0")
    assert dev["triton"].specifier == SpecifierSet(">=3.6,<3.9")


def test_every_supported_python_is_named() -> None:
    """The classifiers name exactly the Python versions that `requires-python` admits."""
    supported = SpecifierSet(PROJECT["project"]["requires-python"])
    named = {
        line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if ":: 3." in line
    }
    assert named == {f"3.{minor}" for minor in range(30) if supported.contains(f"3.{minor}")}


def test_console_script_starts_the_program() -> None:
    """The installed `workbench` is the `main` of `workbench.cli`."""
    from workbench.cli import main

    (script,) = metadata.entry_points(group="console_scripts", name="workbench")
    assert script.load() is main


@pytest.mark.parametrize("room", PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
def test_every_packaged_room_is_a_package(room: str) -> None:
    """Each packaged directory has an `__init__.py`, so that its data files are found installed."""
    folders = {path.parent for path in (ROOT / room).rglob("*") if path.suffix != ".pyc"}
    python = {folder for folder in folders if any(folder.glob("*.py"))} | {ROOT / room}
    assert all((folder / "__init__.py").is_file() for folder in python)


def test_licence_is_apache_2() -> None:
    """LICENSE is the whole, unchanged text of the Apache License 2.0."""
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_SHA256
    assert PROJECT["project"]["license"] == "Apache-2.0"
