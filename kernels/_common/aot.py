"""Compile Triton kernels for GPUs that are not there, and read what the assemblers report.

    python -m toolkit.kernels._common.aot            # all operators, as a table
    python -m toolkit.kernels._common.aot gla        # one

A file ``kernels/<op>/triton.py`` defines ``aot_cases()``, which yields a mapping for each specialisation that the
operator launches, from the same table of configurations:

* ``name``: a label with type and sizes, unique in the operator;
* ``fn``: the ``@triton.jit`` function;
* ``signature``: run-time arguments by name: ``*bf16`` ``*fp32`` ``*i64`` (pointers, 16-byte aligned), ``i32`` ``fp32``;
* ``constexprs``: all other arguments by name, None for an absent pointer;
* ``options``: ``num_warps``, ``num_stages``, ...;
* optionally ``targets``, the only targets of the case, and ``max_spill``, the bytes per thread that it may spill (0).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit import registry
from toolkit.errors import InputError, nearest, require


@dataclass(frozen=True)
class Target:
    """A GPU as Triton names it, and the shared memory that a block may have there, in bytes."""

    backend: str
    architecture: int | str
    warp_size: int
    shared: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163 * 1024),
    "sm_90": Target("cuda", 90, 32, 227 * 1024),
    "gfx942": Target("hip", "gfx942", 64, 64 * 1024),
}


def check(op: str | None = None, targets: Sequence[str] = tuple(TARGETS)) -> list[dict[str, Any]]:
    """Compile every case of one operator, or of all that have a Triton form, in a process of its own.

    A process of its own because interpreted kernels cannot be compiled, and with an empty cache because a kernel from
    Triton's cache brings no report.

    Returns:
        A mapping per case and target: ``op``, ``case``, ``target``, ``status`` (``ok``, ``FAIL``, ``SHARED``: more than
        the target has, ``SPILL``: more than allowed, ``SCALAR``: matrix products without tensor cores), ``registers``
        per thread, ``spilled`` bytes per thread, ``shared`` bytes per block, ``tensor_core`` (number of instructions),
        ``warps`` and ``note``.

    Raises:
        InputError: unknown operator or target, or an operator without a Triton form.
        MissingPackageError: triton is not installed.
    """
    require("triton", "triton", "Compiling kernels")
    for target in targets:
        if target not in TARGETS:
            raise InputError(f"unknown target {target!r}", nearest(target, TARGETS) or f"One of: {', '.join(TARGETS)}")
    ops = [registry.kernels.entry(op).name] if op else registry.kernels.names()
    with_kernels = [name for name in ops if importlib.util.find_spec(f"toolkit.kernels.{name}.triton")]
    if op and not with_kernels:
        raise InputError(f"{op} has no Triton form")

    code = f"from toolkit.kernels._common import aot; aot._compile_here({with_kernels!r}, {list(targets)!r})"
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TRITON_CACHE_DIR": cache, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment.pop("TRITON_INTERPRET", None)
        child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if child.returncode:
        raise RuntimeError(f"the compile check broke:\n{child.stderr}")
    return json.loads(child.stdout)


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows of ``check`` as Markdown: a line per case, ``registers / spilled / shared [tensor core]`` per target."""
    cases: dict[tuple[str, str, int], dict[str, str]] = {}
    for row in rows:
        figures = row["note"]
        if row["status"] != "FAIL":
            cores = f" [{row['tensor_core']}]" if row["tensor_core"] else ""
            figures = f"{row['registers']} / {row['spilled']} / {row['shared']}{cores}"
        shown = figures if row["status"] == "ok" else f"**{row['status']}** {figures}"
        cases.setdefault((row["op"], row["case"], row["warps"]), {})[row["target"]] = shown
    targets = list(dict.fromkeys(target for shown in cases.values() for target in shown))
    lines = [["operator", "case", "warps", *targets], ["---"] * (3 + len(targets))]
    lines += [
        [op, case, str(warps), *(shown.get(t, "") for t in targets)] for (op, case, warps), shown in cases.items()
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _compile_here(ops: Sequence[str], targets: Sequence[str]) -> None:
    """Print the rows of ``check`` as JSON."""
    rows = []
    for op in ops:
        for case in importlib.import_module(f"toolkit.kernels.{op}.triton").aot_cases():
            for target in targets:
                if target in case.get("targets", TARGETS):
                    rows.append({"op": op, "case": case["name"], "target": target, **_compile(case, TARGETS[target])})
    print(json.dumps(rows))


def _compile(case: Mapping[str, Any], target: Target) -> dict[str, Any]:
    triton = require("triton", "triton", "Compiling kernels")
    from_backends = importlib.import_module("triton.backends.compiler")
    gpu = from_backends.GPUTarget(target.backend, target.architecture, target.warp_size)
    log = io.StringIO()
    warps = case["options"].get("num_warps", 4)
    try:
        with contextlib.redirect_stdout(log), triton.knobs.nvidia.scope():
            triton.knobs.nvidia.dump_ptxas_log = True
            compiled = triton.compile(_source(triton, case), target=gpu, options=dict(case["options"]))
    except Exception as error:  # whatever the compiler raises is the kernel's failure
        reasons = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
        return {"status": "FAIL", "warps": warps, "note": f"{type(error).__name__}: {reasons[-1] if reasons else ''}"}
    figures = _read_nvidia(compiled, log.getvalue()) if target.backend == "cuda" else _read_amd(compiled)
    status = "ok"
    if figures["shared"] > target.shared:
        status = "SHARED"
    elif figures["spilled"] > case.get("max_spill", 0):
        status = "SPILL"
    elif "tt.dot" in compiled.asm["ttir"] and not figures["tensor_core"]:
        status = "SCALAR"
    return {"status": status, "warps": warps, "note": "", **figures}


def _source(triton: Any, case: Mapping[str, Any]) -> Any:
    """The case as Triton's compiler takes it; pointers are as aligned as PyTorch's allocations."""
    names, signature, constexprs = case["fn"].arg_names, case["signature"], case["constexprs"]
    if wrong := set(names) ^ {*signature, *constexprs} or set(signature) & set(constexprs):
        raise ValueError(f"arguments that are missing, unknown or given twice: {sorted(wrong)}")
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(names)
        if signature.get(name, "").startswith("*")
    }
    types = {name: signature.get(name, "constexpr") for name in names}
    return triton.compiler.ASTSource(fn=case["fn"], signature=types, constexprs=dict(constexprs), attrs=aligned)


def _read_nvidia(compiled: Any, log: str) -> dict[str, Any]:
    """Figures from the report of ptxas; the last line about registers is the kernel's own."""
    registers = re.findall(r"Used (\d+) registers", log)
    if not registers:
        raise RuntimeError("ptxas gave no report")
    return {
        "registers": int(registers[-1]),
        "spilled": _largest(r"(\d+) bytes spill (?:stores|loads)", log),
        "shared": compiled.metadata.shared + _largest(r"(\d+) bytes smem", log),
        "tensor_core": len(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async)", compiled.asm["ptx"])),
        "note": "wgmma serialized" if "wgmma.mma_async instructions are serialized" in log else "",
    }


def _read_amd(compiled: Any) -> dict[str, Any]:
    """Figures from the metadata of the code object."""
    text = compiled.asm["amdgcn"]
    return {
        "registers": _largest(r"\.vgpr_count:\s*(\d+)", text),
        "spilled": 4 * _largest(r"\.vgpr_spill_count:\s*(\d+)", text),
        "shared": max(compiled.metadata.shared, _largest(r"\.group_segment_fixed_size:\s*(\d+)", text)),
        "tensor_core": len(re.findall(r"\bv_s?mfma", text)),
        "note": "",
    }


def _largest(pattern: str, text: str) -> int:
    return max(map(int, re.findall(pattern, text)), default=0)


if __name__ == "__main__":
    found = check(sys.argv[1] if len(sys.argv) > 1 else None)
    print(table(found))
    sys.exit(any(row["status"] != "ok" for row in found))
