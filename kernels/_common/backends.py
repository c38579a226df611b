"""Which form of an operator runs: one table of rules, read from the top; the first that applies decides.

| form        | file           | what it is                                              |
| ----------- | -------------- | ------------------------------------------------------- |
| `triton`    | `triton.py`    | GPU kernels                                             |
| `torch`     | `cpu.py`       | the fast form in plain PyTorch, written for CPUs        |
| `reference` | `reference.py` | the definition: any floating type, differentiable twice |

A form is forced by the operator's argument ``backend=`` or, where that is ``auto``, by the environment variable
``TOOLKIT_KERNELS`` (``auto``, the default of both, forces none). A forced form that cannot run is an error with the
reason, never a silent change.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from toolkit.errors import InputError, nearest

FILES = {"triton": "triton", "torch": "cpu", "reference": "reference"}
VARIABLE = "TOOLKIT_KERNELS"
FAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
AMD_ARCHITECTURES = ("gfx90a", "gfx942", "gfx950")

_exporting = False


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Operators called inside are made of standard PyTorch operations only, for exporters that know no others."""
    global _exporting
    before, _exporting = _exporting, True
    try:
        yield
    finally:
        _exporting = before


def only_standard() -> bool:
    """Whether an exporter or tracer is at work that knows only standard PyTorch operations."""
    return _exporting or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()


@dataclass(frozen=True)
class Rule:
    """A row of the table for one call: ``form`` is None where the rule does not apply."""

    name: str
    form: str | None
    reason: str


@dataclass(frozen=True)
class Operator:
    """What the rules need to know of an operator.

    Attributes:
        name: its folder in ``kernels/``.
        fusible: elementwise; a compiler makes a better kernel of the definition and what surrounds it.
        double: the fast forms compute in float64 whatever they get, so they serve it.
    """

    name: str
    fusible: bool = False
    double: bool = False

    def form(self, backend: str) -> ModuleType:
        """The module ``triton``, ``cpu`` or ``reference`` of the operator's folder."""
        return importlib.import_module(f"toolkit.kernels.{self.name}.{FILES[backend]}")

    def choose(self, *tensors: Tensor | None, **conditions: str) -> str:
        """The form that serves these tensors; arguments and errors are those of ``rules``."""
        for rule in self.rules(*tensors, **conditions):
            if rule.form is not None:
                break
        if rule.name == "GPU without Triton":
            warnings.warn(f"{self.name} runs in plain PyTorch: {rule.reason}", stacklevel=4)
        return rule.form or "torch"

    def explain(self, *tensors: Tensor | None, **conditions: str) -> str:
        """The table for a call with the arguments of ``rules``, up to the row that decides."""
        lines = []
        for rule in self.rules(*tensors, **conditions):
            lines.append(f"{'>' if rule.form else ' '} {rule.name:<24} {rule.form or '-':<10} {rule.reason}")
            if rule.form:
                break
        return "\n".join([f"{self.name}:", *lines])

    def rules(
        self, *tensors: Tensor | None, backend: str = "auto", no_triton: str = "", small: str = "", plain: str = ""
    ) -> Iterator[Rule]:
        """The table's rows for one call, in order; the last always applies.

        The reasons that an operator gives are empty where they do not hold. A forced form minds ``no_triton`` only.

        Args:
            tensors: all floating inputs.
            backend: the public function's argument of that name.
            no_triton: why the Triton kernels cannot serve these shapes.
            small: why they would not be faster.
            plain: why the definition is faster than the CPU form.

        Raises:
            InputError: types or devices that no form serves, or a forced form that cannot run.
        """
        present = [tensor for tensor in tensors if tensor is not None]
        dtypes, device = {tensor.dtype for tensor in present}, present[0].device
        self._check(present)

        forced, source = _forced(backend)
        double = torch.float64 in dtypes and not self.double
        gpu = device.type == "cuda"
        hinder = ""
        if gpu or forced == "triton":
            no_triton = f"{self.name} has no kernel for float64" if double else no_triton
            hinder = no_triton or why_no_triton(device.type, device.index)
        if forced == "triton" and hinder:
            raise InputError(f"{source} asks {self.name} for triton, but {hinder}", "auto picks a form that runs")
        yield Rule("backend, " + VARIABLE, forced, f"{source} asks for it" if forced else "nothing forced")

        standard = only_standard()
        yield Rule("export", "reference" if standard else None, "to standard operations" if standard else "no")
        yield Rule("float64", "reference" if double else None, "the fast forms work in float32" if double else "no")
        fuse = self.fusible and torch.compiler.is_compiling()
        yield Rule("compiler", "reference" if fuse else None, "it fuses the definition" if fuse else "no")

        faster = plain if device.type == "cpu" else ""
        yield Rule("definition is faster", "reference" if faster else None, faster or "no")

        if gpu and not hinder and not small:
            yield Rule("GPU", "triton", str(device))
        elif gpu and not hinder:
            yield Rule("small on GPU", "torch", small)
        elif gpu:
            yield Rule("GPU without Triton", "torch", hinder)
        yield Rule("otherwise", "torch", f"tensors are on {device}")

    def _check(self, present: list[Tensor]) -> None:
        for tensor in present:
            if tensor.dtype not in (*FAST_DTYPES, torch.float64):
                raise InputError(
                    f"{self.name} does not take {tensor.dtype}", "Use float32, bfloat16, float16 or float64"
                )
            if tensor.device != present[0].device:
                raise InputError(
                    f"{self.name} got tensors on {present[0].device} and on {tensor.device}", "Move them to one"
                )


@torch.compiler.assume_constant_result
def _forced(backend: str) -> tuple[str | None, str]:
    """The forced form and who forces it."""
    source, value = ("backend", backend) if backend != "auto" else (VARIABLE, os.environ.get(VARIABLE, "auto"))
    if value != "auto" and value not in FILES:
        hint = nearest(value, [*FILES, "auto"]) or f"One of: auto, {', '.join(FILES)}"
        raise InputError(f"{source} is {value!r}", hint)
    return (None if value == "auto" else value), f"{source}={value}"


@torch.compiler.assume_constant_result
def why_no_triton(device_type: str, index: int | None = None) -> str:
    """Why Triton kernels cannot run there, empty if they can. Only Triton's interpreter runs on a CPU."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    if device_type != "cuda":
        return f"the tensors are on {device_type}"
    return _why_not_this_gpu(index) if torch.cuda.is_available() else "no GPU is available"


@functools.cache
def _why_not_this_gpu(index: int | None) -> str:
    if torch.version.hip:
        architecture = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        return "" if architecture in AMD_ARCHITECTURES else f"the kernels are not checked on {architecture}"
    major, minor = torch.cuda.get_device_capability(index)
    if major < 8:
        return f"compute capability {major}.{minor} is below 8.0"
    # Compilers for 10.x get chained matrix products wrong (triton-lang/triton 10821): not until tested on a device.
    return "" if major < 10 else f"the kernels are not tested on compute capability {major}.{minor}"
