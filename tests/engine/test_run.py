from __future__ import annotations

import json
import os

import pytest

from toolkit.engine.config import TrainConfig
from toolkit.engine.run import Run, check_free, clean, newest_unfinished
from toolkit.errors import InputError


def test_a_new_run_says_what_it_is(tmp_path):
    run = Run.create(tmp_path / "a" / "b", TrainConfig(name="try"), "cpu")
    assert run.config()["name"] == "try"
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert not run.finished


def test_the_log_is_cut_back(tmp_path):
    run = Run(tmp_path)
    run.log_metrics({"step": 1})
    size = run.logged()
    run.log_metrics({"step": 2})
    run.cut_log(size)
    run.log_metrics({"step": 3})
    assert [row["step"] for row in run.history()] == [1, 3]


def test_occupied_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not empty"):
        check_free(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        check_free(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write"):
        check_free(tmp_path / "run")


def test_unwritable_folder_of_the_system_is_refused():
    with pytest.raises(InputError, match=r"cannot write to /proc"):
        check_free(__import__("pathlib").Path("/proc/toolkit-run"))


def test_leftovers_are_cleaned(tmp_path):
    (tmp_path / "checkpoints" / ".old-last").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".tmp-best").mkdir()
    (tmp_path / ".tmp-metrics.json").write_text("")
    clean(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last"]
    assert not (tmp_path / ".tmp-metrics.json").exists()


def test_the_newest_unfinished_run_is_found(tmp_path):
    for name, finished in (("1", False), ("2", False), ("3", True)):
        run = Run.create(tmp_path / name, TrainConfig(), "cpu")
        if finished:
            run.finish({})
    assert newest_unfinished(tmp_path) == tmp_path / "2"
    assert newest_unfinished(tmp_path / "nothing") is None


def test_a_folder_without_settings_is_no_run(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        Run(tmp_path).config()
