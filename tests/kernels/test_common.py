"""Dispatch, registration, the compile check and the benchmark frame."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from toolkit import registry
from toolkit.errors import InputError
from toolkit.kernels import gated_fusion as example
from toolkit.kernels._common import aot, backends, bench, memory
from toolkit.kernels._common.backends import Operator
from toolkit.kernels._common.numerics import relative_error
from toolkit.kernels.gated_delta_rule import gated_delta_rule
from toolkit.kernels.gla import gla

ROOT = Path(__file__).parents[2]
X = torch.ones(3)


@pytest.fixture
def no_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def gpu(monkeypatch, no_interpreter):
    """Tensors that claim to be on a GPU which serves Triton kernels."""
    monkeypatch.setattr(backends, "why_no_triton", lambda *_: "")
    with torch._subclasses.FakeTensorMode():
        return torch.empty(3, device="cuda")


def test_cpu(no_interpreter):
    assert Operator("op").choose(X) == "torch"


def test_the_definition_where_it_is_faster(gpu):
    assert Operator("op").choose(X, plain="3 elements") == "reference"
    assert Operator("op").choose(X, plain="3 elements", backend="torch") == "torch"
    assert Operator("op").choose(gpu, plain="3 elements") == "triton"


def test_float64_and_exports_take_the_definition():
    assert Operator("op").choose(X.double()) == "reference"
    with backends.exporting():
        assert Operator("op").choose(X) == "reference"
    assert Operator("op").choose(X) == "torch"


def test_tracing_takes_the_definition():
    traced = torch.jit.trace(example.glu, (torch.randn(3), torch.randn(3)))
    assert "gated::" not in str(traced.graph)


def test_gpu(gpu):
    assert Operator("op").choose(gpu) == "triton"
    assert Operator("op").choose(gpu, small="T is 3") == "torch"
    assert Operator("op").choose(gpu, small="T is 3", backend="triton") == "triton"
    with pytest.warns(UserWarning, match=r"op runs in plain PyTorch: K is 300, over 256"):
        assert Operator("op").choose(gpu, no_triton="K is 300, over 256") == "torch"


def test_a_form_is_forced(monkeypatch, no_interpreter):
    assert Operator("op").choose(X, backend="reference") == "reference"
    assert Operator("op").choose(X.double(), backend="torch") == "torch"
    monkeypatch.setenv("TOOLKIT_KERNELS", "reference")
    assert Operator("op").choose(X) == "reference"
    assert Operator("op").choose(X, backend="torch") == "torch"


def test_a_forced_form_that_cannot_run(monkeypatch, no_interpreter, gpu):
    with pytest.raises(InputError, match="backend=triton asks op for triton, but K is 300"):
        Operator("op").choose(gpu, backend="triton", no_triton="K is 300")
    with pytest.raises(InputError, match="float64"):
        Operator("op").choose(X.double(), backend="triton")
    monkeypatch.undo()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match="the tensors are on cpu|triton is not installed"):
        Operator("op").choose(X, backend="triton")
    monkeypatch.setenv("TOOLKIT_KERNELS", "trito")
    with pytest.raises(InputError, match=r"TOOLKIT_KERNELS is 'trito'.*'triton'"):
        Operator("op").choose(X)


def test_types_and_devices_that_nobody_serves():
    with pytest.raises(InputError, match=r"op does not take torch.int64"):
        Operator("op").choose(X.long())
    with pytest.raises(InputError, match="on cpu and on meta"):
        Operator("op").choose(X, X.to("meta"))


def test_the_table_is_printed(no_interpreter):
    shown = Operator("op").explain(X)
    assert " ".join(shown.splitlines()[-1].split()) == "> otherwise torch tensors are on cpu"
    assert "reference" in Operator("op").explain(X.double()).splitlines()[-1]


def test_dispatch_inside_a_compiled_function():
    def branch(x, op):
        return x + {"torch": 1, "reference": 2}[op.choose(x)]

    compiled = torch.compile(branch, fullgraph=True, backend="eager")
    assert compiled(X, Operator("op")).tolist() == [2, 2, 2]
    assert compiled(X, Operator("op", fusible=True)).tolist() == [3, 3, 3]


def test_everything_works_without_triton():
    code = """
import sys
sys.modules["triton"] = None
import torch
from toolkit.kernels import gated_fusion as operator
x = torch.randn(3, requires_grad=True)
operator.swiglu(x, x).sum().backward()
assert "toolkit.kernels.gated_fusion.triton" not in sys.modules
from toolkit.errors import InputError, MissingPackageError
from toolkit.kernels._common import aot
try:
    operator.swiglu(x, x, backend="triton")
except InputError as error:
    assert "triton is not installed" in str(error), error
try:
    aot.check()
except MissingPackageError:
    print("done")
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "done\n", run.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", aot.TARGETS)
@pytest.mark.parametrize(
    "op", [name for name in registry.kernels.names() if (ROOT / "kernels" / name / "triton.py").exists()]
)
def test_kernels_compile_for_every_target(op, target):
    pytest.importorskip("triton")
    rows = aot.check(op, [target])
    assert {row["target"] for row in rows} == {target}
    assert not [row for row in rows if row["status"] != "ok"]


def test_the_compile_check_names_unknown_things():
    pytest.importorskip("triton")
    with pytest.raises(InputError, match="sm_91.*sm_90"):
        aot.check(targets=["sm_91"])
    with pytest.raises(InputError, match="dropout has no Triton form"):
        aot.check("dropout")


def test_the_compile_table():
    row = {"op": "op", "case": "fwd", "warps": 4, "target": "sm_80", "status": "SPILL", "note": ""}
    row |= {"registers": 255, "spilled": 8, "shared": 1024, "tensor_core": 12}
    broken = {"op": "op", "case": "fwd", "warps": 4, "target": "sm_90", "status": "FAIL", "note": "why"}
    assert (
        aot.table([row, broken]).splitlines()[-1] == "| op | fwd | 4 | **SPILL** 255 / 8 / 1024 [12] | **FAIL** why |"
    )


def test_a_wrong_kernel_gets_no_speed_figure():
    def case(result, **options):
        return bench.Case("c", lambda: [result], {"eager": lambda: [X]}, lambda: [X], **options)

    (wrong,) = bench._measure(case(2 * X), repeats=3)
    assert wrong["error"] == 1.0
    assert "ratio" not in wrong
    (right,) = bench._measure(case(X, most={"eager": 0.0}), repeats=3)
    assert right["ratio"] > 0
    assert right["repeats"] == 3
    assert bench._measure(case(X, once=["eager"]), repeats=3)[0]["repeats"] == 1
    rows = [{"op": "op", **wrong}, {"op": "op", **right}]
    assert ["not measured" in line for line in bench.failures(rows)] == [True, False]


def test_growth_compares_lengths_of_a_series():
    sizes = [(256, 1.0), (1024, 5.0), (1024, 4.4), (4096, 16.0)]
    rows = [{"op": "op", "series": "fwd", "length": length, "ours_ms": time} for length, time in sizes]
    rows += [{"op": "op", "error": 1.0}, {"op": "op", "series": "", "length": 0, "ours_ms": 1.0}]
    assert bench.growth(rows) == [
        "op: fwd, T=1,024 takes 4.40 times T=256",
        "op: fwd, T=4,096 takes 3.64 times T=1,024",
    ]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_memory_counts_what_the_call_frees_again():
    def compute():
        torch.ones(2**24).sum()  # 67 MB
        return [torch.ones(2**22)]

    assert 60 < bench.peak_megabytes(compute) < 90


def test_relative_error_counts_nan_and_zero():
    assert relative_error(X * float("nan"), X) != relative_error(X, X) == 0
    assert relative_error(X, 0 * X) == pytest.approx(3**0.5)


def test_large_results_are_ordinary_tensors():
    like = torch.empty(memory.LARGE // 8, 2).t()
    result = memory.empty_like(like)
    assert result.is_contiguous()
    assert result.shape == like.shape
    assert result.isnan().all()


def test_workspace_gives_each_request_of_a_tile_its_memory_again():
    with memory.workspace(torch.device("cpu")) as work:
        first = [work(3, 4), work(2, 5)]
        work.restart()
        assert work(2, 3).data_ptr() == first[0].data_ptr()
        assert work(2, 5) is first[1]
        with memory.workspace(torch.device("cpu")) as inner:
            assert inner is not work


@pytest.mark.parametrize("operator", [gla, gated_delta_rule])
def test_workspace_keeps_no_more_after_a_second_call(operator):
    memory._of_thread.__dict__.clear()
    q, k, v = torch.randn(3, 1, 1100, 1, 8).unbind()
    gates = [-torch.rand(1, 1100, 1, 8)] if operator is gla else list(-torch.rand(2, 1, 1100, 1))
    leaves = [x.requires_grad_() for x in (q, k, v, *gates)]

    def kept() -> tuple[int, int]:
        for _ in range(2):
            operator(*leaves)[0].sum().backward()
        work = memory._of_thread.workspace
        return work.size(), len(work.views)

    assert kept() == kept()


def test_workspace_of_inference_serves_training():
    q, k, v = torch.randn(3, 1, 40, 1, 4).unbind()
    g = -torch.rand(1, 40, 1, 4)
    memory._of_thread.__dict__.clear()
    with torch.inference_mode():
        inferred, _ = gla(q, k, v, g)
    leaves = [x.clone().requires_grad_() for x in (q, k, v, g)]
    trained, _ = gla(*leaves)
    trained.sum().backward()
    assert torch.equal(trained, inferred)


def test_threads_do_not_share_a_workspace():
    inputs = [torch.randn(3, 1, 700, 2, 8) for _ in range(4)]
    g = -torch.rand(1, 700, 2, 8)
    alone = [gla(*x, g)[0] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            together = list(pool.map(lambda x: gla(*x, g)[0], inputs))
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
