"""Commands that need no training."""

from __future__ import annotations

import json

import pytest
import torch

from toolkit.cli._settings import plain_settings, split_words
from toolkit.cli.main import spell_out_resume
from toolkit.errors import InputError
from toolkit.kernels._common.bench import Case
from toolkit.kernels.gated_fusion import bench


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["--data", "my.csv"], ["--data=my.csv"]),
        (["--data=my.csv"], ["--data=my.csv"]),
        (["--skip-bad"], ["--skip-bad=true"]),
        (["--skip-bad", "optim.lr=1"], ["--skip-bad=true", "optim.lr=1"]),
        (["--fill", "3", "--mode", "S"], ["--fill=3", "--mode=S"]),
        (["--shift", "-3"], ["--shift=-3"]),
    ],
)
def test_free_keys(words, settings):
    assert split_words(words) == ([], settings)


def test_sizes_of_a_conversion():
    assert plain_settings(["n_heads=8", "--stride", "4"]) == {"n_heads": 8, "stride": 4}
    with pytest.raises(InputError, match="unexpected argument 'eight'"):
        plain_settings(["eight"])


def test_resume_takes_a_value_only_if_it_is_one(tmp_path):
    assert spell_out_resume(["train", "x", "--resume"]) == ["train", "x", "--resume=auto"]
    assert spell_out_resume(["--resume", "--quiet"]) == ["--resume=auto", "--quiet"]
    assert spell_out_resume(["--resume", "auto"]) == ["--resume", "auto"]
    assert spell_out_resume(["--resume", str(tmp_path)]) == ["--resume", str(tmp_path)]


def test_version(run):
    assert run("--version")[1].strip() == "0.1.0"


COMMANDS = ["train", "evaluate", "predict", "list", "show", "data", "convert", "bench", "doctor"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_examples(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert out.count(f"toolkit {command}") >= 2


def test_list_as_json(run):
    code, out, _ = run("list", "models", "gatef*", "--json")
    assert code == 0
    assert json.loads(out) == [{"name": "gateformer", "task": "forecast"}]


def test_list_datasets_shows_licences(run):
    rows = {row["name"]: row for row in json.loads(run("list", "datasets", "--json")[1])}
    assert rows["beijing_pm25"]["licence"] == "CC BY 4.0"


def test_show_recipe_can_be_passed_back(run, tmp_path):
    _, out, _ = run("show", "recipe", "gateformer_etth1_96")
    path = tmp_path / "my.yaml"
    path.write_text(out)
    _, again, _ = run("show", "recipe", path)
    assert again.replace("name: gateformer_etth1_96", "") == out.replace("name: gateformer_etth1_96", "")


def test_show_model_and_dataset(run):
    described = json.loads(run("show", "model", "gateformer", "--json")[1])
    assert described["arguments"]["patch_len"] == 8
    assert "Windows" not in run("show", "dataset", "beijing_pm25")[1]
    assert json.loads(run("show", "dataset", "ETTh1", "--json")[1])["rows"] == 17420


def test_doctor(run):
    found = json.loads(run("doctor", "--json")[1])
    assert found["versions"]["torch"]
    assert found["folders"]["cache"]
    assert found["kernels"]["cpu"].startswith("plain PyTorch")
    assert run("doctor")[0] == 0


def test_bench_gives_a_wrong_kernel_no_time(run, monkeypatch):
    x = torch.ones(3)

    def cases():
        yield Case("right", ours=lambda: [x], baselines={"eager": lambda: [x]}, exact=lambda: [x.double()])
        yield Case("wrong", ours=lambda: [x + 1], baselines={"eager": lambda: [x]}, exact=lambda: [x.double()])

    monkeypatch.setattr(bench, "bench_cases", cases)
    code, out, err = run("bench", "kernels", "gated_fusion", "--repeats", "1", "--json")
    right, wrong = json.loads(out)
    assert code == 1
    assert "gated_fusion, wrong" in err
    assert right["ratio"] > 0
    assert "ratio" not in wrong
    assert run("bench", "kernels", "no_such_operator")[0] == 2


def test_data_path_and_check(run, make_csv):
    assert "cache" in run("data", "path")[1]
    assert "beijing_pm25.csv.gz" in run("data", "path", "beijing_pm25")[1]
    code, out, _ = run("data", "check", make_csv(), "--json")
    assert code == 0
    assert json.loads(out)["rows"] == 600


def test_absent_named_set(run):
    code, _, err = run("data", "check", "traffic")
    assert code == 3
    assert "traffic.csv not found" in err


def test_mistyped_names(run):
    assert "Did you mean 'forecast'" in run("train", "forcast")[2]
    assert "Did you mean 'gateformer_etth1_96'" in run("train", "forecast", "--recipe", "gateformer_eth1_96")[2]
    code, _, err = run("data", "path", "etthh1")
    assert code == 2
    assert "Did you mean" in err


@pytest.mark.parametrize(
    ("words", "mentioned"),
    [
        (["train"], "task"),
        (["traim"], "train"),
        (["list", "nothing"], "models"),
        (["train", "forecast", "--seed", "x"], "seed"),
        (["train", "forecast", "--max-steps", "0"], "max-steps"),
    ],
)
def test_wrong_usage_has_exit_code_2_and_no_traceback(run, words, mentioned):
    code, _, err = run(*words)
    assert code == 2
    assert mentioned in err
    assert "Traceback" not in err
