"""Trained models as files for other programs: ONNX, or ``torch.export``'s own form.

A file is written aside, read again, run beside the model on several sizes of input, and kept only if it agrees. The
function ``toolkit.export`` lives here and not in a module of its name, which would hide it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import toolkit
from toolkit import hub, registry
from toolkit.errors import InputError, ToolkitError, require
from toolkit.kernels._common.backends import exporting

SUFFIX = {"onnx": ".onnx", "torch-export": ".pt2"}
TOLERANCE = 1e-4  # largest difference of an output, relative where outputs are larger than 1
CARD = "card"  # where a file says what the model directory says: columns and scaling, classes and preprocessing
BATCH = 2  # of the example that is traced; exporters take a size of 1 for a constant

Runner = Callable[[Sequence[Tensor]], Tensor]


class Disagreement(ToolkitError):
    """A written file gives other results than its model, or none."""


def export(
    *,
    run: str | Path | None = None,
    model: str | Path | None = None,
    format: str = "onnx",
    output: str | Path | None = None,
    untrained: bool = False,
) -> dict[str, Any]:
    """Write a model as one file that gives the same results for any batch, and any size of image where it can.

    Args:
        run, model: a run folder; or a model directory, or a timm name; one of them. A name for which nobody published
            weights gets random ones, and the result says so.
        format: ``onnx``, all of standard operators, for ONNX Runtime and others; or ``torch-export``, for
            ``torch.export.load``, which keeps the toolkit's operators.
        output: the file, replaced if it is there, or a folder; default: a new file of the model's name.
        untrained: take random weights for a timm name, to measure speed.

    Returns:
        ``file``, ``format``, ``model``, ``inputs`` and ``output`` (names and axes, with words for free ones), ``mb``,
        ``seconds``, ``error`` (the largest difference from the model), ``checked`` (shapes of the first input that
        were compared) and ``notes``.

    Raises:
        InputError: no such model, or a file that cannot be written there.
        MissingPackageError: ONNX without the extra ``export``.
        ToolkitError: the exporter cannot express the model, or its file differs from it; none is left.
    """
    if format not in SUFFIX:
        raise InputError(f"unknown format {format!r}", f"There are {' and '.join(SUFFIX)}")
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require(package, extra="export", purpose="Exporting to ONNX")
    if (run is None) == (model is None):
        raise InputError("name the model by one of --run and --model")
    notes: list[str] = []
    pretrained = _find(run if run is not None else model, untrained, notes)
    task = _task(pretrained)
    name = task.config.model.name
    path = _target(name, SUFFIX[format], output)

    start = time.monotonic()
    module = pretrained.model.cpu().float().eval()
    examples = task.example_inputs(BATCH)
    names = task.input_names[: len(examples)]
    aside = path.with_name(f".tmp-{path.name}")
    try:
        aside.touch()  # before minutes of work
    except OSError as problem:
        raise InputError(f"cannot write {path}: {problem.strerror}", "Choose another -o") from None
    try:
        for axes in _axes_to_try(task, names):
            try:
                program = _trace(module, examples, axes, standard=format == "onnx")
                free = _free_axes(program, axes)
                card = json.dumps(pretrained.card, default=str)
                if format == "onnx":
                    _save_onnx(program, aside, names, task.output_name, axes, card)
                else:
                    with _quiet():
                        torch.export.save(program, aside, extra_files={CARD: card})
                checked, error = _compare(module, _reader(format, aside), examples, free)
            except OSError:  # a full disk: nothing that another attempt would change
                raise
            except Exception as problem:
                if len(axes[0]) == 1:  # only the batch is free, nothing is left to fix
                    raise _cannot(name, format, problem) from problem
                continue
            aside.replace(path)
            break
    finally:
        aside.unlink(missing_ok=True)
    wished = set(task.free_axes.get(names[0], {}).values())
    if fixed := sorted(wished - {word for words in free for word in words.values()}):
        notes.append(f"{' and '.join(fixed)} fixed")
    return {
        "file": str(path),
        "format": format,
        "model": name,
        "inputs": {n: _shape(x, words) for n, x, words in zip(names, examples, free, strict=True)},
        "output": task.output_name,
        "mb": round(path.stat().st_size / 1e6, 1),
        "seconds": round(time.monotonic() - start, 1),
        "error": error,
        "checked": checked,
        "notes": notes,
    }


def _find(source: Any, untrained: bool, notes: list[str]) -> hub.Pretrained:
    """The model with what its directory says; for a name without published weights one with random weights."""
    text = str(source)
    if hub.is_bare_name(text):
        import timm

        from toolkit.tasks.classify import weights
        from toolkit.tasks.classify.backbones import check_name, create_backbone

        if weights.is_name(text):
            check_name(text)
            known = timm.get_pretrained_cfg(text)
            if untrained or known is None or not known.has_weights:
                notes.append("random weights" + ("" if untrained else ": timm has none of this name"))
                model: Any = create_backbone(text)
                card = {"task": "classify", **weights.card_of(model.pretrained_cfg)}
                card["config"]["model"]["name"] = text  # without the tag of weights that it does not have
                return hub.Pretrained(model, card, {}, Path(text))
    if untrained:
        raise InputError(f"--untrained takes a name of timm, not {text}", "Leave it out")
    return hub.load_pretrained(source)


def _task(pretrained: hub.Pretrained) -> Any:
    """The model's task around it."""
    card = pretrained.card
    if "task" not in card:
        raise InputError(f"{pretrained.folder} does not say its task", "Name a folder of toolkit train or convert")
    cls = registry.tasks.load(card["task"])
    task = cls(cls.Config.build(cls.settings_of(card)))
    task.restore(pretrained.model, card, pretrained.extra)
    return task


def _target(name: str, suffix: str, output: str | Path | None) -> Path:
    """The file to write."""
    own = f"{name.rpartition('/')[2]}{suffix}"
    path = Path(own if output is None else output)
    path = path / own if path.is_dir() else path
    if output is None and path.exists():
        raise InputError(f"{path} is there already", f"To replace it: -o {path}")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist")
    if path.suffix != suffix:
        raise InputError(f"cannot write {path}: its form is not known", f"Name a {suffix} file")
    return path


def _axes_to_try(task: Any, names: Sequence[str]) -> Iterator[list[dict[int, str]]]:
    """Names of the free axes of each input: as many as the task hopes for, then only the batch."""
    if any(task.free_axes.get(name) for name in names):
        yield [{0: "batch", **task.free_axes.get(name, {})} for name in names]
    yield [{0: "batch"} for _ in names]


def _trace(
    module: nn.Module, examples: Sequence[Tensor], axes: Sequence[dict[int, str]], standard: bool
) -> ExportedProgram:
    """The model's operations; an axis that turns out to be one size only is fixed."""
    sizes = tuple(dict.fromkeys(words, Dim.AUTO) for words in axes)
    with torch.no_grad(), _quiet(), exporting() if standard else contextlib.nullcontext():
        return torch.export.export(module, tuple(examples), dynamic_shapes=sizes, strict=False)


def _free_axes(program: ExportedProgram, axes: Sequence[dict[int, str]]) -> list[dict[int, str]]:
    """Of these axes those that the program left free.

    Raises:
        ToolkitError: the batch is not among them.
    """
    shapes = _input_shapes(program)
    free = [
        {axis: word for axis, word in words.items() if isinstance(shape[axis], torch.SymInt)}
        for shape, words in zip(shapes, axes, strict=True)
    ]
    if any(0 not in words for words in free):
        raise ToolkitError(f"its batch is fixed to {BATCH}")
    return free


def _input_shapes(program: ExportedProgram) -> list[torch.Size]:
    inputs = set(program.graph_signature.user_inputs)
    return [node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]


def _save_onnx(
    program: ExportedProgram,
    path: Path,
    names: Sequence[str],
    output: str,
    axes: Sequence[dict[int, str]],
    card: str,
) -> None:
    import onnx

    with _quiet():
        made = torch.onnx.export(program, input_names=list(names), output_names=[output], dynamo=True, verbose=False)
    assert made is not None
    proto = made.model_proto
    words = {
        str(shape[axis]): word
        for shape, free in zip(_input_shapes(program), axes, strict=True)
        for axis, word in free.items()
        if isinstance(shape[axis], torch.SymInt)
    }
    for value in (*proto.graph.input, *proto.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = words.get(size.dim_param, size.dim_param)
    del proto.graph.value_info[:]  # shapes in between: those after a Fourier transform are wrong where sizes are free
    proto.producer_name, proto.producer_version = "gated-toolkit", toolkit.__version__
    onnx.helper.set_model_props(proto, {CARD: card})
    onnx.save(proto, path)


def _reader(format: str, path: Path) -> Runner:
    """The written file as a function of its inputs."""
    if format == "torch-export":
        with _quiet():
            return _call(torch.export.load(path).module())
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception, too
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> Tensor:
        (found,) = session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
        return torch.from_numpy(found)

    return run


def _call(module: nn.Module) -> Runner:
    def run(inputs: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            return module(*inputs)

    return run


def _compare(
    module: nn.Module, run: Runner, examples: Sequence[Tensor], free: Sequence[dict[int, str]]
) -> tuple[list[list[int]], float]:
    """Shapes of the first input for which the file was run, and its largest difference from the model.

    Raises:
        Disagreement: that is too large.
    """
    trials = [list(examples)]
    for batch, scale in ((1, 1.0), (3, 1.0), (1, 2.0)):
        sizes = [{axis: scale for axis in words if axis} | {0: batch / BATCH} for words in free]
        trials.append([_stretched(x, factors) for x, factors in zip(examples, sizes, strict=True)])
    checked: list[list[int]] = []
    worst = 0.0
    for inputs in trials:
        shape = list(inputs[0].shape)
        if shape in checked:  # no free size beside the batch
            continue
        expected, found = _call(module)(inputs), run(inputs)
        if found.shape != expected.shape:
            raise Disagreement(f"for {shape} it returns {list(found.shape)}, not {list(expected.shape)}")
        error = float((found - expected).abs().max())
        if not error <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise Disagreement(f"for {shape} it is off by {error:.1e}, which is more than {TOLERANCE:g}")
        checked.append(shape)
        worst = max(worst, error)
    return checked, worst


def _stretched(x: Tensor, factors: dict[int, float]) -> Tensor:
    """The tensor repeated and cut along some axes; those beside the batch to sizes that differ, one of them odd."""
    for number, (axis, factor) in enumerate(sorted(factors.items())):
        size = round(x.shape[axis] * factor) + (number if axis and factor != 1 else 0)
        x = torch.cat([x, x.flip(axis), x], axis).narrow(axis, 0, size)
    return x


def _cannot(name: str, format: str, problem: Exception) -> ToolkitError:
    reason = " ".join(str(problem).split()) or type(problem).__name__
    reason = reason if len(reason) < 300 else f"{reason[:300]} ..."
    what = "the file was not kept" if isinstance(problem, Disagreement) else "the exporter gave up"
    return ToolkitError(f"{name} cannot be exported as {format}, {what}: {reason.rstrip('.')}")


def _shape(x: Tensor, words: dict[int, str]) -> list[int | str]:
    return [words.get(axis, size) for axis, size in enumerate(x.shape)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside, exporters keep their progress and their remarks on their own insides to themselves."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.export", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
