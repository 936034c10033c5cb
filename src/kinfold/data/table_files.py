"""Tables in files: CSV, which is read strictly, and Parquet."""

import csv
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

from kinfold.data.base import Kind
from kinfold.data.plain import read_bytes, read_text
from kinfold.data.targets import as_written
from kinfold.errors import InputError, unknown
from kinfold.files import inert, write_bytes
from kinfold.importing import one_line
from kinfold.limits import most_of

if TYPE_CHECKING:  # importing pandas takes long, and arrays do without it
    import pandas

MISSING = ("", "NA", "NaN", "nan", "NULL", "null")
"""What a missing value may be written as in a CSV file."""

MISSING_TARGETS = (*MISSING, "None")
"""What is read as missing where a target should be; `None` may be a category of a feature."""

_ROWS_AT_ONCE = 4096  # of a Parquet file: few, since a value that is written once may be repeated in each
_CELL = 8  # bytes of most cells of a table in memory, however few they take in a file
_DELIMITERS = (",", ";", "\t")


def read_csv(
    path: Path, *, target: str | None = None, kind: Kind | None = None, written: Collection[str] = ()
) -> "pandas.DataFrame":
    r"""Returns a CSV file as a table; its first line names the columns.

    The delimiter is the one of comma, semicolon and tab that divides the first line most. A missing value is an
    empty field or one of `MISSING`. Every row must have as many fields as the first line: a row that was cut off
    is an error, not a row of missing values.

    Args:
        path: a UTF-8 text file.
        target: the column whose labels are to come back as they were written (see `as_written`); one that the
            file does not have is passed over.
        kind: `classification` or `regression` where the way the target is written says otherwise.
        written: columns that are text, as it is written, whatever they hold: else the type of a column hangs on all of
            its values, and `01` may be a number in one file and a word in another. Those that the file does not have
            are passed over.

    Raises:
        InputError: no such file, no UTF-8 text, no rows, a column without a name or with another's, a row with
            too few or too many fields, an open quotation mark; the line is named. A missing target.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.csv")
        ...     _ = path.write_text("size;name\n1;'a, b'\n")
        ...     read_csv(path).to_dict("list")
        {'size': [1], 'name': ["'a, b'"]}
    """
    import pandas as pd

    text = read_text(path)
    delimiter = max(_DELIMITERS, key=lambda each: len(next(csv_records(path, text, each, strict=False), (0, []))[1]))
    header = _check_records(path, text, delimiter)
    table = pd.read_csv(
        io.StringIO(text, newline=""),
        sep=delimiter,
        header=0,
        index_col=False,
        keep_default_na=False,
        na_values={column: list(MISSING) for column in header if column != target},
        dtype={column: str for column in header if column == target or column in written},
        low_memory=False,  # one type a column, not one a chunk
        skip_blank_lines=len(header) > 1,  # a blank line in a single column is a missing value
    )
    if target in header:
        table[target] = written_target(table[target].tolist(), target, kind)
    return table


def written_target(texts: Sequence[str], name: str, kind: Kind | None) -> Shaped[np.ndarray, " N"]:
    """Returns the target column of a text file (see `as_written`), checked to have no gaps.

    Args:
        texts: [N] fields as they stand.
        name: the column's, for messages.
        kind: `classification` or `regression` where the user says so.

    Raises:
        InputError: a field that is empty, or one of `MISSING_TARGETS`.

    Example:
        >>> written_target(["true", "false"], "buys", None).tolist()
        ['true', 'false']
    """
    for row, text in enumerate(texts):
        if text in MISSING_TARGETS:
            why = f", since {text!r} is read as missing; write it otherwise" if text else "; fill it"
            raise InputError(f"{name}: row {row} has no value{why} or drop the row.")
    return as_written(texts, kind)


def csv_records(path: Path, text: str, delimiter: str, *, strict: bool) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of the line a record ends on, and its fields."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict)
    try:
        for record in reader:
            yield reader.line_num, record
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num} cannot be read as CSV ({error}); correct its quotation marks."
        ) from None


def _check_records(path: Path, text: str, delimiter: str) -> list[str]:
    """Returns the names of the columns, having counted the fields of every record."""
    records = csv_records(path, text, delimiter, strict=True)
    _, header = next(records, (0, []))
    if not header:
        raise InputError(f"{path}: line 1 is empty; give a line of column names and rows below it.")
    for number, name in enumerate(header):
        if not name.strip():
            raise InputError(f"{path}: column {number} (from 0) has no name in line 1; name it or remove it.")
        if name in header[:number]:
            raise InputError(f"{path}: two columns are called {name!r}; rename one.")
    rows = 0
    for line, record in records:
        if record and len(record) != len(header):
            raise InputError(
                f"{path}: line {line} has {len(record)} fields where line 1 has {len(header)}; complete or remove it."
            )
        rows += bool(record)
    if rows == 0:
        raise InputError(f"{path}: has column names and no rows; give one row at least.")
    return header


def read_parquet(path: Path) -> "pandas.DataFrame":
    """Returns a Parquet file as a table.

    Raises:
        InputError: pyarrow is not installed, no such file, a damaged file, one that unpacks to more than
            `limits.most_of` its size, or a column of lists or structures.
    """
    _require_pyarrow(path)
    from pyarrow import parquet

    content = read_bytes(path)
    try:
        file = parquet.ParquetFile(io.BytesIO(content))
        most = most_of(len(content))
        if file.metadata.num_rows * len(file.schema_arrow) * _CELL > most:
            raise _too_much(most)
        return _frame(file.schema_arrow, file.iter_batches(_ROWS_AT_ONCE), most)
    except Exception as error:  # pyarrow has many errors for a damaged file
        raise InputError(f"{path}: cannot be read as Parquet ({one_line(error)}).") from None


def read_arrow(path: Path) -> "pandas.DataFrame":
    """Returns an Arrow or Feather file as a table; Arrow in the form of files or of streams.

    Raises:
        InputError: pyarrow is not installed, no such file, a damaged file, one that unpacks to more than
            `limits.most_of` its size, or a column of lists or structures.
    """
    _require_pyarrow(path)
    from pyarrow import ipc

    content = read_bytes(path)
    try:
        most = most_of(len(content))
        if content.startswith(b"FEA1"):
            raise ValueError("Feather of the first version, which pyarrow gives up; write it again as version 2")
        if content.startswith(b"ARROW1"):
            file = ipc.open_file(content)
            frame = _frame(file.schema, map(file.get_batch, range(file.num_record_batches)), most)
        else:
            stream = ipc.open_stream(content)
            frame = _frame(stream.schema, stream, most)
    except Exception as error:  # pyarrow has many errors for a damaged file
        raise InputError(f"{path}: cannot be read as Arrow ({one_line(error)}).") from None
    return frame


def _frame(schema: Any, batches: Iterable[Any], most: int) -> "pandas.DataFrame":
    """Returns batches of Arrow as a table, unpacking no more bytes of them than `most`."""
    from pyarrow import Table, types

    for field in schema:
        kind = field.type.value_type if types.is_dictionary(field.type) else field.type
        if types.is_nested(kind) or types.is_run_end_encoded(kind):  # of which a few bytes may be many values
            raise ValueError(f"column {field.name[:40]!r} holds lists or structures; drop it")
    kept, size = [], 0
    for batch in batches:
        batch.validate(full=True)  # Arrow trusts what it reads: offsets that lead elsewhere, text that is none
        size += max(batch.nbytes, batch.num_rows * batch.num_columns * _CELL)  # truth values are bits, and gaps nothing
        if size > most:
            raise _too_much(most)
        kept.append(batch)
    frame: pandas.DataFrame = Table.from_batches(kept, schema).to_pandas()
    return frame


def _too_much(most: int) -> ValueError:
    return ValueError(f"it unpacks to more than {most} bytes; where it is to, raise KINFOLD_MAX_BYTES")


def write_table(path: Path, frame: "pandas.DataFrame") -> None:
    """Writes a table as CSV or Parquet, by the path's ending, whole or not at all.

    In CSV, text that a spreadsheet would take for a formula gets an apostrophe before it (see `kinfold.files.inert`);
    Parquet holds all text as it is.

    Raises:
        InputError: the path ends otherwise, or pyarrow is needed and not installed.
    """
    writers: dict[str, Callable[[], bytes]] = {
        ".csv": lambda: frame.map(inert).set_axis(frame.columns.map(inert), axis=1).to_csv(index=False).encode(),
        ".parquet": lambda: _parquet(path, frame),
    }
    if path.suffix.lower() not in writers:
        raise unknown("out: file format", path.suffix, writers)
    write_bytes(path, writers[path.suffix.lower()]())


def _parquet(path: Path, frame: "pandas.DataFrame") -> bytes:
    _require_pyarrow(path)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, engine="pyarrow", index=False)
    return buffer.getvalue()


def _require_pyarrow(path: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise InputError(f"{path}: Parquet and Arrow need pyarrow; install kinfold[parquet].") from None
