"""The command line: arguments to ``toolkit.api``, errors to exit codes. Nothing heavy is imported until it is needed.

Exit codes: 0 ok, 1 the run failed, 2 usage, configuration or bad input, 3 a named data set is missing or damaged,
4 an optional package is missing, 130 interrupted.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

import toolkit
from toolkit.cli.bench import bench
from toolkit.cli.convert import convert
from toolkit.cli.data import data
from toolkit.cli.doctor import doctor
from toolkit.cli.evaluate import evaluate
from toolkit.cli.export import export
from toolkit.cli.list import list_names
from toolkit.cli.predict import predict
from toolkit.cli.show import show
from toolkit.cli.train import train
from toolkit.errors import ToolkitError

USER_OS_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors are one line on standard error and an exit code; a defect keeps its traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ToolkitError as error:
            fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            fail("interrupted", 130)
        except OSError as error:
            if error.errno not in USER_OS_ERRORS:
                raise
            fail(f"cannot write {error.filename or 'output'}: {error.strerror}", 2)
        except Exception as error:
            if not hasattr(error, "recorded_in"):
                raise
            fail(f"{type(error).__name__}: {error} (traceback in {error.recorded_in})", 1)

    return run


def fail(message: str, code: int) -> None:
    """Print one line on standard error and leave with an exit code."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


app = typer.Typer(
    name="toolkit",
    help="Published gated models that train, evaluate and predict on your data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
FREE_KEYS = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command("train", context_settings=FREE_KEYS)(guarded(train))
app.command("evaluate", context_settings=FREE_KEYS)(guarded(evaluate))
app.command("predict", context_settings=FREE_KEYS)(guarded(predict))
app.command("list")(guarded(list_names))
app.command("show")(guarded(show))
app.command("data")(guarded(data))
app.command("convert", context_settings=FREE_KEYS)(guarded(convert))
app.command("export")(guarded(export))
app.command("bench")(guarded(bench))
app.command("doctor")(guarded(doctor))


@app.callback(invoke_without_command=True)
def options(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
    no_color: bool = typer.Option(False, "--no-color", help="Plain output (also: NO_COLOR=1)."),
) -> None:
    if no_color:
        os.environ["NO_COLOR"] = "1"
    if version:
        typer.echo(toolkit.__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    # A thread pool that spins while it waits burns whole cores on small models, and stalls where cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    app(spell_out_resume(sys.argv[1:] if arguments is None else arguments))


def spell_out_resume(words: list[str]) -> list[str]:
    """``--resume`` alone means ``--resume auto``; the next word is its value only if it is that or a folder."""
    spelled = []
    for word, following in zip(words, [*words, ""][1:], strict=True):
        has_value = following == "auto" or (following and Path(following).is_dir())
        spelled.append("--resume=auto" if word == "--resume" and not has_value else word)
    return spelled
