from __future__ import annotations

import pytest

from toolkit.cli.main import main


@pytest.fixture
def run(capsys):
    """Run a command; returns exit code, standard output and standard error."""

    def call(*words) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return call
