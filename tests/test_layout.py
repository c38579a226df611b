"""The import rule and the packaging rule."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTENT = ("tasks", "kernels", "datasets", "pretrained", "cli")

BASE = {"errors", "config", "registry", ""}  # "" is toolkit itself: its version
ALLOWED = {
    "errors": set(),
    "config": {"errors", "registry"},
    "registry": {"errors"},
    "kernels": BASE,
    "data": BASE,
    "blocks": BASE | {"kernels"},
    "adapt": BASE | {"kernels", "blocks"},
    "datasets": BASE | {"data"},
    "engine": BASE | {"data"},
    "tasks": BASE | {"data", "blocks", "adapt", "datasets", "engine"},
    "pretrained": BASE | {"data", "blocks", "engine", "tasks"},
    "hub": BASE | {"data", "blocks", "engine", "tasks"},
    "exports": BASE | {"kernels", "tasks", "hub"},  # not "export": the module would hide the function toolkit.export
    "api": BASE | {"kernels", "data", "blocks", "datasets", "engine", "tasks", "hub"},
    "suites": BASE | {"engine", "tasks", "api"},
    "cli": BASE | {"kernels", "data", "engine", "api", "suites", "hub", "exports"},
}


def files_of(part: str) -> list[Path]:
    module, folder = ROOT / "toolkit" / f"{part}.py", ROOT / (part if part in CONTENT else f"toolkit/{part}")
    return [module] if module.exists() else sorted(folder.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Absolute names of everything that a file imports, whatever the depth of the statement."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str | None:
    head, *rest = name.split(".")
    if head != "toolkit":
        return None
    return rest[0] if rest and rest[0] in ALLOWED else ""


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_down_only(part):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files_of(part)
        for name in imports(path)
        if part_of(name) not in ALLOWED[part] | {part, None}
    ]
    assert not wrong, "\n".join(wrong)


def test_tasks_never_import_each_other():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files_of("tasks")
        for name in imports(path)
        if name.startswith("toolkit.tasks.") and name.split(".")[2] != path.relative_to(ROOT / "tasks").parts[0]
    ]
    assert not wrong, "\n".join(wrong)


def test_triton_is_imported_only_in_kernel_files():
    wrong = [
        str(path.relative_to(ROOT))
        for part in ALLOWED
        for path in files_of(part)
        if path.name != "triton.py" and any(name.split(".")[0] == "triton" for name in imports(path))
    ]
    assert not wrong


@pytest.mark.parametrize("name", CONTENT)
def test_content_folders_are_namespaces_behind_links(name):
    assert not (ROOT / name / "__init__.py").exists(), "it would hide a Hugging Face library of that name"
    assert (ROOT / "toolkit" / name).resolve() == (ROOT / name).resolve()


@pytest.mark.parametrize("words", [["--help"], ["list", "models"], ["list", "recipes"], ["list", "datasets"]])
def test_listing_imports_no_torch(words):
    code = f"""
import sys
from toolkit.cli.main import main
try:
    main({words!r})
except SystemExit as stop:
    assert stop.code == 0, stop.code
heavy = [name for name in ("torch", "numpy", "pandas", "timm") if name in sys.modules]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_files_stay_short():
    long = {
        str(path.relative_to(ROOT)): lines
        for part in ALLOWED
        for path in files_of(part)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long, f"split by idea: {long}"


def test_every_lazy_name_is_a_function_and_hides_no_package():
    import toolkit

    for name in toolkit._LAZY:
        assert callable(getattr(toolkit, name)), name
        assert not (ROOT / "toolkit" / name).exists(), f"toolkit.{name} is a package too"
