"""The README's commands: the two that it promises, and every other one as far as it can be checked without running."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from toolkit import registry
from toolkit.cli.main import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "tasks").glob("*/README.md"))]


def commands() -> list[str]:
    """Every ``toolkit ...`` line of the pages' code blocks, without its comment."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            lines = re.sub(r"\\\n\s*", "", block).splitlines()
            found += [line.partition("#")[0].strip() for line in lines if line.startswith("toolkit ")]
    return found


def test_the_two_commands():
    main, tests = re.findall(r"^(pip install .*?)\s+# \d", README, flags=re.MULTILINE)
    assert main == "pip install -e . && toolkit train forecast"
    assert tests == 'pip install -e ".[dev]" && pytest'
    script = (ROOT / ".ci" / "run").read_text()
    assert 'pip install -q -e ".[dev]"' in script
    assert "\npytest\n" in script


@pytest.mark.parametrize("line", commands())
def test_commands_name_what_exists(line):
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    _, command, *words = shlex.split(line)
    options = {name for parameter in known[command].params for name in parameter.opts}
    for option in (word.partition("=")[0] for word in words if word.startswith("-")):
        assert option in options | {"--data", "--fill", "--model"}, f"{line}: {option}"
    if "--recipe" in words:
        registry.recipes.entry(words[words.index("--recipe") + 1])
    if command in ("train", "evaluate", "predict"):
        registry.tasks.entry(words[0])


def test_links_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
