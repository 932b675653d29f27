"""What is imported when: the command line answers at once, and nothing here needs torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {
    "matplotlib", "msgspec", "numpy", "pydantic", "rich", "ruamel", "simpy", "textual", "torch",
}  # fmt: skip
COMMANDS = sorted(
    path.stem
    for path in (ROOT / "workbench" / "cli").glob("*.py")
    if "\ndef run(" in path.read_text(encoding="utf-8")
)
MOST_MODULES = 240  # typer and the standard library it needs take 150 to 200

_REPORT_MODULES = """
import json, sys
from workbench.cli import main
try:
    main(sys.argv[1:])
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def modules_after(*arguments: str, cwd: Path | None = None) -> set[str]:
    """Names of all modules that a process has loaded when `workbench ARGUMENTS` ends."""
    process = subprocess.run(
        [sys.executable, "-c", _REPORT_MODULES, *arguments],
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return set(json.loads(process.stderr.splitlines()[-1]))


def roots(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command: str) -> None:
    """`--help` of the program and of each command loads typer and little else."""
    modules = modules_after(*filter(None, [command]), "--help")
    assert roots(modules) & HEAVY == set()
    assert len(modules) <= MOST_MODULES


def test_simulate_never_loads_torch(tmp_path: Path) -> None:
    """A whole simulation, recorded and printed, leaves torch and the user interface unloaded."""
    modules = modules_after("simulate", "quickstart", "--quiet", cwd=tmp_path)
    assert roots(modules) & {"torch", "triton", "textual", "matplotlib"} == set()
    assert {"engine.core.scheduler", "simpy"} <= modules, "this did not simulate"


def test_import_engine_never_loads_torch() -> None:
    """`import engine` and every module of `engine.core` and `simulator` leave torch unloaded."""
    names = ["engine", *modules_of("engine/core"), *modules_of("simulator")]
    code = (
        "import importlib, sys\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "assert 'torch' not in sys.modules and 'textual' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


ALLOWED = {
    "engine/core": {"engine", "numpy", "msgspec"},
    "simulator": {"engine", "simulator", "numpy", "simpy", "msgspec", "scipy"},
    "scenarios": set(),
}
NO_CLOCK_THREAD_OR_CHANCE = {
    "asyncio", "concurrent", "datetime", "multiprocessing", "random", "secrets", "select",
    "selectors", "signal", "socket", "subprocess", "threading", "time", "uuid",
}  # fmt: skip


@pytest.mark.parametrize("room", ALLOWED)
def test_room_imports_only_what_the_plan_allows(room: str) -> None:
    """Each room imports the standard library and the packages that the plan names, nothing else."""
    for path in (ROOT / room).rglob("*.py"):
        foreign = roots(imported_by(path)) - set(sys.stdlib_module_names) - ALLOWED[room]
        assert not foreign, f"{path} imports {foreign}"


def test_only_fitting_needs_scipy() -> None:
    """Who predicts with a profile does not need what it was fitted with."""
    users = [path.name for path in (ROOT / "simulator").rglob("*.py")
             if "scipy" in roots(imported_by(path))]  # fmt: skip
    assert users == ["base.py"]
    for path in (ROOT / "simulator").rglob("*.py"):
        fits = {name for name in imported_by(path) if name.startswith("simulator.fitting")}
        assert not fits or path.parent.name == "fitting", f"{path} imports {fits}"


def test_simulator_sees_only_the_core_of_the_engine() -> None:
    """The simulator imports nothing of `engine` but `engine.core`."""
    for path in (ROOT / "simulator").rglob("*.py"):
        engine = {name for name in imported_by(path) if name.partition(".")[0] == "engine"}
        outside = {name for name in engine if not f"{name}.".startswith("engine.core.")}
        assert not outside, f"{path} imports {outside}"


def test_core_has_no_clock_thread_or_random_source() -> None:
    """Nothing in `engine.core` imports a clock, a thread, a process or a random source."""
    for path in (ROOT / "engine" / "core").rglob("*.py"):
        effects = roots(imported_by(path)) & NO_CLOCK_THREAD_OR_CHANCE
        assert not effects, f"{path} imports {effects}"


def modules_of(room: str) -> list[str]:
    files = (ROOT / room).rglob("*.py")
    names = (path.relative_to(ROOT).with_suffix("").parts for path in files)
    return sorted(".".join(parts).removesuffix(".__init__") for parts in names)


def imported_by(path: Path) -> set[str]:
    """Dotted names of everything that a file imports anywhere, inside functions too."""
    return set(_imports(ast.parse(path.read_text(encoding="utf-8"))))


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room they reach"
            yield f"{node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
