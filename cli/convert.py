"""``toolkit convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli._settings import plain_settings


def convert(
    context: typer.Context,
    family: Annotated[str, typer.Argument(help="Family of the checkpoint, for example gateformer.")],
    file: Annotated[Path, typer.Argument(help="The official checkpoint (.pth, .pt or .safetensors).")],
    out: Annotated[Path, typer.Argument(help="Model directory to write.")],
) -> None:
    """Turn an official checkpoint into a model directory. Sizes that its shapes do not tell follow as key=value.

    Examples:

        toolkit convert gateformer checkpoint.pth my_model/ n_heads=4

        toolkit convert gateformer checkpoint.safetensors my_model/
    """
    from toolkit import api

    typer.echo(f"model directory: {api.convert(family, file, out, **plain_settings(context.args))}")
