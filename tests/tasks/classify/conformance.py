"""timm's own model tests, run on the backbones that ``import toolkit.tasks.classify`` registers.

    python tests/tasks/classify/conformance.py fetch              # once: the tests of the installed version
    python tests/tasks/classify/conformance.py                    # all 16 registered models: minutes, 6 GB
    python tests/tasks/classify/conformance.py 'vig_*' hornet_tiny_gf -- -k 'not contract'

timm's wheel has no tests; its source distribution does. They lie in ``$TIMM_SOURCE`` (the unpacked distribution) or,
after ``fetch``, in the toolkit's cache. This file is also the pytest plugin of those runs: timm's tests ask
``timm.list_models`` for names while they are imported, so it answers with ours before that. The tests themselves are
not touched.
"""

from __future__ import annotations

import fnmatch
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PATTERNS = "TOOLKIT_CONFORM"  # wildcards of model names, with commas between


def source() -> Path:
    """Where timm's unpacked source distribution is, or would be."""
    if given := os.environ.get("TIMM_SOURCE"):
        return Path(given)
    from toolkit.data.cache import cache_dir

    return cache_dir() / f"timm-{version('timm')}"


def fetch() -> Path:
    """Download the source distribution of the installed timm with pip, and unpack its tests into the cache."""
    target = source()
    name = f"timm-{version('timm')}"
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", folder]
        subprocess.run([*download, name.replace("-", "==")], check=True)
        with tarfile.open(Path(folder) / f"{name}.tar.gz") as archive:
            members = [member for member in archive if member.name.startswith(f"{name}/tests/")]
            for member in members:
                member.name = member.name.removeprefix(f"{name}/")
            archive.extractall(target, members, filter="data")
    return target


def run(patterns: list[str], *options: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run timm's tests on the registered models that match one of the patterns.

    Args:
        patterns: wildcards of model names.
        options: further options of pytest.
        how: further arguments of ``subprocess.run``.
    """
    tests = source()
    command = [sys.executable, "-m", "pytest", "-p", "conformance", "-p", "no:timeout", "-p", "no:cacheprovider"]
    command += ["--rootdir", str(tests), "-c", os.devnull, "-W", "ignore", "-q", *options]
    paths = [str(Path(__file__).parent), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), PATTERNS: ",".join(patterns)}
    command.append(str(tests / "tests" / "test_models.py"))
    return subprocess.run(command, env=environment, cwd=tests, text=True, check=False, **how)


def _answer_with_ours() -> set[str]:
    """Make ``timm.list_models`` know the toolkit's models only; returns their names."""
    import timm
    import timm.models

    list_models, known = timm.list_models, set(timm.list_models())
    import toolkit.tasks.classify  # noqa: F401

    patterns = os.environ[PATTERNS].split(",")
    models = {
        name for name in set(list_models()) - known if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    }
    modules = sorted({timm.models.model_entrypoint(name).__module__.rsplit(".", 1)[-1] for name in models})

    def ours(filter: Any = "", module: Any = "", *args: Any, **options: Any) -> list[str]:
        # Tests of intermediate features are for the modules that timm names; ours claim the same.
        found = list_models(filter, modules if module else module, *args, **options)
        return [name for name in found if name.split(".")[0] in models]

    timm.list_models = ours
    return models


def pytest_configure(config: Any) -> None:
    config.toolkit_models = _answer_with_ours()


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Drop the tests of models that timm's file names itself."""

    def is_ours(item: Any) -> bool:
        name = getattr(getattr(item, "callspec", None), "params", {}).get("model_name", "")
        return isinstance(name, str) and name.split(".")[0] in config.toolkit_models

    dropped = [item for item in items if not is_ours(item)]
    items[:] = [item for item in items if is_ours(item)]
    config.hook.pytest_deselected(items=dropped)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:] == ["fetch"]:
        print(fetch())
    elif not source().is_dir():
        sys.exit(f"no tests of timm at {source()}. Get them with: python {sys.argv[0]} fetch")
    else:
        words = sys.argv[1:]
        split = words.index("--") if "--" in words else len(words)
        sys.exit(run(words[:split] or ["*"], *words[split + 1 :]).returncode)
