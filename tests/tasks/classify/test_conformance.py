"""timm's own model tests on the smallest variant of each family; see ``conformance.py``."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("conformance", Path(__file__).with_name("conformance.py"))
assert spec is not None
assert spec.loader is not None
conformance = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conformance)

SOURCE = conformance.source()  # before the tests' fixtures hide the user's cache
TESTS_PER_MODEL = 11  # of a model that is held to the standard selection


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not (SOURCE / "tests" / "test_models.py").is_file(),
    reason="needs timm's tests: python tests/tasks/classify/conformance.py fetch, or set TIMM_SOURCE",
)
@pytest.mark.parametrize("model", ["vig_tiny", "vig_h_tiny", "hornet_tiny_7x7", "hornet_tiny_gf"])
def test_timm_tests_pass(model, monkeypatch):
    monkeypatch.setenv("TIMM_SOURCE", str(SOURCE))
    result = conformance.run([model], stdout=subprocess.PIPE)
    summary = result.stdout.strip().splitlines()[-1]
    assert result.returncode == 0, result.stdout[-6000:]
    assert re.match(rf"{TESTS_PER_MODEL} passed", summary), summary
