"""Where a table comes from: a CSV file, a Parquet file or a data frame, each read in blocks of rows."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import logging
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import pandas as pd

from toolkit.errors import InputError, nearest, require

_log = logging.getLogger(__name__)

_BLOCK_CELLS = 1 << 16  # half a megabyte of float64: little beside the table
_SAMPLE_ROWS = 50


class Source(Protocol):
    """A table that has not been read yet.

    Attributes:
        name: for messages.
        columns: names in order; a column without a name in the file has one from ``unnamed``.
        unnamed: made-up names of columns that have none.
        rows: at least as many as there are.
        columns_at_once: how many columns are cheap to read together; None: all.
    """

    name: str
    columns: tuple[str, ...]
    unnamed: frozenset[str]
    rows: int
    columns_at_once: int | None

    def sample(self) -> pd.DataFrame:
        """The first rows; columns are labelled by position, and numbers may be text."""

    def blocks(self, columns: Sequence[int], time: int | None) -> Iterator[pd.DataFrame]:
        """All rows in order, at least the columns at these positions, which label them; ``time`` is text or dates.

        (Labels that are text would make pandas start Arrow, which takes as much memory as many blocks.)
        """

    def place(self, row: int) -> str:
        """Words for a row that is counted from 0."""


def open_binary(path: Path) -> BinaryIO:
    """Open a file for reading, through gzip if its first bytes say so."""
    try:
        with path.open("rb") as handle:
            zipped = handle.read(2) == b"\x1f\x8b"
        return cast(BinaryIO, gzip.open(path, "rb") if zipped else path.open("rb"))
    except FileNotFoundError as error:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"{path} does not exist", nearest(path.name, siblings)) from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder", "Name a CSV or Parquet file in it") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def read_chunks(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    """The (uncompressed) bytes of a file, piece by piece."""
    with open_binary(path) as handle:
        try:
            while chunk := handle.read(size):
                yield chunk
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path} is not a complete gzip file", "Fetch or compress it again") from error


def _block_rows(num_columns: int) -> int:
    return max(16, _BLOCK_CELLS // max(1, num_columns))


def _with_unnamed(names: Sequence[str], is_unnamed: Sequence[bool]) -> tuple[tuple[str, ...], frozenset[str]]:
    filled = [
        f"unnamed column {i + 1}" if blank else name
        for i, (name, blank) in enumerate(zip(names, is_unnamed, strict=True))
    ]
    return tuple(filled), frozenset(name for name, blank in zip(filled, is_unnamed, strict=True) if blank)


class CsvSource:
    """A text table with commas, semicolons, tabs or bars between the cells, plain or gzip.

    Args:
        header: whether the first line names the columns; else they are called ``0``, ``1``, …
    """

    columns_at_once: int | None = None

    def __init__(self, path: Path, header: bool = True):
        self.path, self.name, self._header = path, path.name, header
        head, lines = b"", 0
        for chunk in read_chunks(path, 1 << 18):
            head = head or chunk
            lines += max(chunk.count(b"\n"), chunk.count(b"\r"))
        if not head.strip():
            raise InputError(f"{self.name} is empty")
        if b"\0" in head[:4096]:
            raise InputError(f"{self.name} is neither text nor Parquet", "Export the table as CSV")
        text = io.TextIOWrapper(io.BytesIO(head), "utf-8-sig", errors="replace", newline="")
        first = next((line for line in text if line.strip()), "")
        self._separator = max(",;\t|", key=first.count)
        names = csv.reader(itertools.chain([first], text), delimiter=self._separator)  # a name may contain line ends
        cells = [cell.strip() for cell in next(names)]
        if not header:
            cells = [str(i) for i in range(len(cells))]
        elif all(re.fullmatch(r"[-+.:/\deETZ ]*\d[-+.:/\deETZ ]*", cell) for cell in cells):
            raise InputError(
                f"{self.name} has no header: its first line is {first.strip()[:60]!r}",
                "Add one that names the columns",
            )
        self.columns, self.unnamed = _with_unnamed(cells, [not cell for cell in cells])
        self.rows = lines + 1 - header

    def place(self, row: int) -> str:
        return f"row {row + 1} (line {row + 1 + self._header})"

    def _reader(self, handle: BinaryIO, **options: Any) -> Any:
        return pd.read_csv(
            handle,
            sep=self._separator,
            header=0 if self._header else None,
            names=range(len(self.columns)),
            index_col=False,
            skipinitialspace=True,
            encoding_errors="replace",
            low_memory=False,
            **options,
        )

    def sample(self) -> pd.DataFrame:
        with open_binary(self.path) as handle:
            return next(self._iterate(self._reader(handle, dtype=object, chunksize=_SAMPLE_ROWS)), pd.DataFrame())

    def blocks(self, columns: Sequence[int], time: int | None) -> Iterator[pd.DataFrame]:
        wanted = {*columns, *([] if time is None else [time])}
        named = {i for i, name in enumerate(self.columns) if name not in self.unnamed}
        options = {
            # Only without `usecols` does pandas notice rows that are too long.
            "usecols": None if named <= wanted else sorted(wanted),
            "dtype": None if time is None else {time: object},
            "chunksize": _block_rows(len(self.columns)),
        }
        with open_binary(self.path) as handle:
            yield from self._iterate(self._reader(handle, **options))

    def _iterate(self, reader: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        while True:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", pd.errors.ParserWarning)
                    block = next(reader)
            except StopIteration:
                return
            except pd.errors.ParserWarning as error:
                raise InputError(
                    f"{self.name}: the rows have more cells than the header's {len(self.columns)}"
                ) from error
            except pd.errors.ParserError as error:
                reason = str(error).strip().splitlines()[0].rsplit("C error: ", 1)[-1]
                raise InputError(f"{self.name} is not a regular table: {reason}") from error
            yield block


class ParquetSource:
    """A Parquet file, whose columns are stored one after the other."""

    columns_at_once: int | None = 8

    def __init__(self, path: Path):
        require("pyarrow", "parquet", "Reading Parquet")
        import pyarrow
        import pyarrow.parquet

        open_binary(path).close()
        try:
            self._file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path} is not a Parquet file: {str(error).splitlines()[0]}") from error
        self.name = path.name
        self._names = self._file.schema_arrow.names
        self.columns, self.unnamed = _with_unnamed(
            self._names, [name.startswith("__index_level_") for name in self._names]
        )
        self.rows = self._file.metadata.num_rows

    def place(self, row: int) -> str:
        return f"row {row + 1}"

    def sample(self) -> pd.DataFrame:
        return next(self.blocks(range(len(self.columns)), None), pd.DataFrame()).head(_SAMPLE_ROWS)

    def blocks(self, columns: Sequence[int], time: int | None) -> Iterator[pd.DataFrame]:
        wanted = [*columns, *([] if time is None else [time])]
        for batch in self._file.iter_batches(
            _block_rows(len(wanted)), columns=[self._names[i] for i in wanted], use_threads=False
        ):
            yield pd.DataFrame({i: batch.column(self._names[i]).to_pandas() for i in wanted})


class FrameSource:
    """A pandas data frame; an index of dates, or one with a name, is a column too."""

    name = "the data frame"
    columns_at_once: int | None = None

    def __init__(self, frame: pd.DataFrame):
        index = frame.index
        if isinstance(index, pd.MultiIndex):
            raise InputError("the data frame has several index levels", "Use reset_index() and one row per time stamp")
        if isinstance(index, pd.PeriodIndex):
            index = index.to_timestamp()
        keep = index.name is not None or isinstance(index, pd.DatetimeIndex)
        self._index = index if keep else None
        self._frame = frame
        label = [str(index.name or "index")] if keep else []
        self.columns = (*label, *map(str, frame.columns))
        self.unnamed = frozenset[str]()
        self.rows = len(frame)

    def place(self, row: int) -> str:
        return f"row {row + 1}"

    def sample(self) -> pd.DataFrame:
        return self._slice(0, _SAMPLE_ROWS)

    def blocks(self, columns: Sequence[int], time: int | None) -> Iterator[pd.DataFrame]:
        step = _block_rows(len(self.columns))
        for start in range(0, self.rows, step):
            yield self._slice(start, start + step)

    def _slice(self, start: int, stop: int) -> pd.DataFrame:
        shift = self._index is not None
        part = self._frame.iloc[start:stop].set_axis(range(shift, len(self.columns)), axis=1)
        if self._index is not None:
            part.insert(0, 0, self._index[start:stop])
        return part


def open_source(source: Any, header: bool = True) -> Source:
    """Recognise a table: a path by its ending and content, a data frame by its type.

    Args:
        source: path of a CSV (``.gz`` too) or Parquet file, a pandas data frame, or one with ``to_pandas()``.
        header: of a CSV: whether the first line names the columns.

    Raises:
        InputError: not there, not readable, no table, or two columns of one name.
    """
    opened: Source
    if isinstance(source, pd.DataFrame):
        opened = FrameSource(source)
    elif hasattr(source, "to_pandas"):  # polars and its like
        opened = FrameSource(source.to_pandas())
    elif isinstance(source, str | Path):
        path = Path(source)
        if path.suffix.lower() in (".xlsx", ".xls", ".ods", ".zip"):
            raise InputError(f"{path.name} is not a CSV or Parquet file", "Export the table as CSV")
        opened = ParquetSource(path) if path.suffix.lower() in (".parquet", ".pq") else CsvSource(path, header)
    else:
        raise InputError(f"a {type(source).__name__} is not a table", "Give a path or a data frame")
    repeated = [name for name in opened.columns if opened.columns.count(name) > 1]
    if repeated:
        raise InputError(f"{opened.name} has several columns named {repeated[0]!r}", "Rename one of them")
    if opened.unnamed:
        _log.info("%s: a column without a name is taken for a row index, not a variable", opened.name)
    return opened
