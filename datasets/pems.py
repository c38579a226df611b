"""PEMS: traffic flow at sensors of four Californian districts, every 5 minutes."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.sources import open_binary
from toolkit.data.tables import Table, refuse_options
from toolkit.errors import InputError

CARDS: dict[str, dict[str, Any]] = {
    "pems03": {
        "title": "Traffic flow, Californian district 3, every 5 minutes",
        "licence": "none stated",
        "homepage": "https://pems.dot.ca.gov",
        "citation": (
            "Guo et al., Attention Based Spatial-Temporal Graph Convolutional Networks, AAAI 2019; Song "
            "et al., STSGCN, AAAI 2020; benchmark form: Liu et al., SCINet, NeurIPS 2022"
        ),
        "notes": (
            "No licence is stated for the data: use your own copy, do not pass it on",
            (
                "No checksum is known: the file is used unchecked; rows and columns follow from the published"
                " split sizes"
            ),
            (
                "Array [time, sensor, feature] under the key data; feature 0 is the flow. Missing values are "
                "filled forward, then backward, within each split"
            ),
            "No stamps, so no calendar features",
        ),
        "obtain": "Fetch PEMS03.npz from the links in the README of https://github.com/cure-lab/SCINet",
        "files": {
            "PEMS03.npz": {},
        },
        "folders": ("PEMS",),
        "rows": 26208,
        "columns": 358,
        "freq": "5min",
        "split": "pems",
        "season": 288,
    },
    "pems04": {
        "title": "Traffic flow, Californian district 4, every 5 minutes",
        "licence": "none stated",
        "homepage": "https://pems.dot.ca.gov",
        "citation": (
            "Guo et al., Attention Based Spatial-Temporal Graph Convolutional Networks, AAAI 2019; Song "
            "et al., STSGCN, AAAI 2020; benchmark form: Liu et al., SCINet, NeurIPS 2022"
        ),
        "notes": (
            "No licence is stated for the data: use your own copy, do not pass it on",
            (
                "No checksum is known: the file is used unchecked; rows and columns follow from the published"
                " split sizes"
            ),
            (
                "Array [time, sensor, feature] under the key data; feature 0 is the flow. Missing values are "
                "filled forward, then backward, within each split"
            ),
            "No stamps, so no calendar features",
        ),
        "obtain": "Fetch PEMS04.npz from the links in the README of https://github.com/cure-lab/SCINet",
        "files": {
            "PEMS04.npz": {},
        },
        "folders": ("PEMS",),
        "rows": 16992,
        "columns": 307,
        "freq": "5min",
        "split": "pems",
        "season": 288,
    },
    "pems07": {
        "title": "Traffic flow, Californian district 7, every 5 minutes",
        "licence": "none stated",
        "homepage": "https://pems.dot.ca.gov",
        "citation": (
            "Guo et al., Attention Based Spatial-Temporal Graph Convolutional Networks, AAAI 2019; Song "
            "et al., STSGCN, AAAI 2020; benchmark form: Liu et al., SCINet, NeurIPS 2022"
        ),
        "notes": (
            "No licence is stated for the data: use your own copy, do not pass it on",
            (
                "No checksum is known: the file is used unchecked; rows and columns follow from the published"
                " split sizes"
            ),
            (
                "Array [time, sensor, feature] under the key data; feature 0 is the flow. Missing values are "
                "filled forward, then backward, within each split"
            ),
            "No stamps, so no calendar features",
        ),
        "obtain": "Fetch PEMS07.npz from the links in the README of https://github.com/cure-lab/SCINet",
        "files": {
            "PEMS07.npz": {},
        },
        "folders": ("PEMS",),
        "rows": 28224,
        "columns": 883,
        "freq": "5min",
        "split": "pems",
        "season": 288,
    },
    "pems08": {
        "title": "Traffic flow, Californian district 8, every 5 minutes",
        "licence": "none stated",
        "homepage": "https://pems.dot.ca.gov",
        "citation": (
            "Guo et al., Attention Based Spatial-Temporal Graph Convolutional Networks, AAAI 2019; Song "
            "et al., STSGCN, AAAI 2020; benchmark form: Liu et al., SCINet, NeurIPS 2022"
        ),
        "notes": (
            "No licence is stated for the data: use your own copy, do not pass it on",
            (
                "No checksum is known: the file is used unchecked; rows and columns follow from the published"
                " split sizes"
            ),
            (
                "Array [time, sensor, feature] under the key data; feature 0 is the flow. Missing values are "
                "filled forward, then backward, within each split"
            ),
            "No stamps, so no calendar features",
        ),
        "obtain": "Fetch PEMS08.npz from the links in the README of https://github.com/cure-lab/SCINet",
        "files": {
            "PEMS08.npz": {},
        },
        "folders": ("PEMS",),
        "rows": 17856,
        "columns": 170,
        "freq": "5min",
        "split": "pems",
        "season": 288,
    },
}


def read(name: str, path: Path, **options: Any) -> Table:
    """Read feature 0 of the array ``data`` [time, sensor, feature]; sensors are called ``0``, ``1``, …

    Missing values stay: the split fills them.

    Args:
        options: ``columns``, names of sensors.

    Raises:
        InputError: the file holds no such array.
    """
    refuse_options(name, options, allowed=("columns",))
    try:
        with open_binary(path) as handle, np.load(handle, allow_pickle=False) as archive:
            flow = archive["data"]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path.name} is not an .npz file with a numeric array 'data'") from error
    if flow.ndim != 3:
        raise InputError(f"{path.name}: the array 'data' has the shape {flow.shape}, expected (time, sensor, feature)")
    sensors = [str(sensor) for sensor in range(flow.shape[1])]
    table = Table.from_array(path.name, sensors, flow[:, :, 0], freq=CARDS[name]["freq"])
    return table.select(options.get("columns") or sensors)
