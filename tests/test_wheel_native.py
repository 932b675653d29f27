"""A wheel brings the libraries that can be compiled where it is built, and none where none can."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from engine.native import build
from engine.native.build import EXTENSIONS, Extension, NativeUnavailableError

ROOT = Path(__file__).parent.parent
INTERFACE = "hatchling.builders.hooks.plugin.interface"


def load_hook(monkeypatch: pytest.MonkeyPatch, *, choice: str | None, compiler: bool) -> ModuleType:
    """hatch_build.py as Hatchling imports it, without Hatchling."""
    monkeypatch.setitem(sys.modules, INTERFACE, SimpleNamespace(BuildHookInterface=object))
    if choice is None:
        monkeypatch.delenv("WORKBENCH_BUILD_NATIVE", raising=False)
    else:
        monkeypatch.setenv("WORKBENCH_BUILD_NATIVE", choice)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if compiler else None)
    monkeypatch.setattr("sys.platform", "linux")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def built(module: ModuleType, version: str = "standard") -> tuple[dict[str, Any], list[str]]:
    """(what the wheel is told, warnings)."""
    warnings: list[str] = []
    hook, data = module.NativeBuildHook(), {"force_include": {}, "pure_python": True}
    hook.root, hook.app = str(ROOT), SimpleNamespace(display_warning=warnings.append)
    hook.initialize(version, data)
    hook.finalize(version, data, "")
    return data, warnings


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling what includes torch's headers fails, as where torch is not installed."""

    def compile_into(extension: Extension, folder: Path) -> Path:
        if "torch" in extension.needs:
            raise NativeUnavailableError("torch is not installed")
        return folder / extension.file_name

    monkeypatch.setattr(build, "compile_into", compile_into)


@pytest.mark.usefixtures("without_torch")
def test_what_can_be_compiled_is_in_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot is told and left out, and the wheel is of this kind of machine."""
    module = load_hook(monkeypatch, choice=None, compiler=True)
    assert module.NativeBuildHook().dependencies() == ["ninja>=1.11", "pybind11>=3.0"]
    data, warnings = built(module)
    bundled = {str(build.bundled(e).relative_to(ROOT)) for e in EXTENSIONS if e.binds_python}
    assert set(data["force_include"].values()) == bundled
    assert (data["pure_python"], data["infer_tag"]) == (False, True)
    assert [w.partition(" is left out: torch")[0] for w in warnings] == [
        e.name for e in EXTENSIONS if "torch" in e.needs
    ]


@pytest.mark.usefixtures("without_torch")
def test_a_failure_is_an_error_if_libraries_are_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With WORKBENCH_BUILD_NATIVE=1."""
    with pytest.raises(NativeUnavailableError, match="torch is not installed"):
        built(load_hook(monkeypatch, choice="1", compiler=True))


@pytest.mark.parametrize(("choice", "compiler"), [(None, False), ("0", True)])
def test_a_wheel_can_be_python_alone(
    monkeypatch: pytest.MonkeyPatch, choice: str | None, compiler: bool
) -> None:
    """Without a compiler, or where it is not wanted, nothing is needed and nothing compiled."""
    module = load_hook(monkeypatch, choice=choice, compiler=compiler)
    assert module.NativeBuildHook().dependencies() == []
    assert built(module) == ({"force_include": {}, "pure_python": True}, [])


def test_an_editable_install_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sources may change."""
    module = load_hook(monkeypatch, choice="1", compiler=True)
    assert built(module, "editable")[0] == {"force_include": {}, "pure_python": True}
