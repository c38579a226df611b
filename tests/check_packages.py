"""Check that a wheel and an sdist hold what the checkout holds: ``python tests/check_packages.py DIST...``."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONTENT = ("tasks", "kernels", "datasets", "pretrained", "cli")
SUFFIXES = (".py", ".yaml", ".json", ".md", ".csv.gz", ".safetensors")


def expected() -> set[str]:
    """Every module and data file, as it is installed."""
    own = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "toolkit").rglob("*")
        if not any((ROOT / "toolkit" / name) in path.parents for name in CONTENT)
    }
    linked = {f"toolkit/{path.relative_to(ROOT).as_posix()}" for name in CONTENT for path in (ROOT / name).rglob("*")}
    return {name for name in own | linked if name.endswith(SUFFIXES)}


def held(package: Path) -> set[str]:
    """Files of a package, without the sdist's leading folder."""
    if package.suffix == ".whl":
        return set(zipfile.ZipFile(package).namelist())
    return {name.partition("/")[2] for name in tarfile.open(package).getnames()}


def main() -> None:
    for package in map(Path, sys.argv[1:]):
        missing = sorted(expected() - held(package))
        if missing:
            sys.exit(f"{package.name} lacks {len(missing)} files: {', '.join(missing[:10])}")
        print(f"{package.name}: complete")
        if package.suffix == ".whl":
            top = {name.partition("/")[0] for name in held(package)}
            stray = sorted(name for name in top if name != "toolkit" and not name.endswith(".dist-info"))
            if stray:
                sys.exit(f"{package.name} installs {stray} beside toolkit")


if __name__ == "__main__":
    main()
