"""Tables in text files other than CSV: JSON lines, and the .tab files of Orange.

Lines are counted from 1 in every message.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kinfold.data.base import Kind
from kinfold.data.plain import numbered_lines, read_text
from kinfold.data.table_files import csv_records, written_target
from kinfold.errors import InputError, unknown

if TYPE_CHECKING:  # importing pandas takes long, and arrays do without it
    import pandas

TARGET = "target"
"""Under this name a table that was read from a file says in its `attrs` which column is the target, where it knows."""

JSON_TARGET = "label"
"""The key that is the target in JSON lines where no other is asked for."""

_TAB_TYPES: Mapping[str, Literal["number", "text"]] = {
    "c": "number",
    "continuous": "number",
    "d": "text",
    "discrete": "text",
    "s": "text",
    "string": "text",
    "t": "text",
    "time": "text",
}
_TAB_MISSING = ("", "?", "NA", "NaN", "nan")


def read_json_table(path: Path, *, target: str | None = None, kind: Kind | None = None) -> "pandas.DataFrame":
    r"""Returns a file of JSON lines as a table: each line an object, its keys the columns, `null` a missing value.

    A column called `label` is the target where no other is asked for (it stands in `attrs` under `TARGET`).

    Args:
        path: a UTF-8 text file such as `{"text": "…", "label": "…"}` a line.
        target: the key whose labels are to come back as they were written: strings as text, numbers, `true` and
            `false` as `as_written` says; one that the file does not have is passed over.
        kind: `classification` or `regression` where the way the target is written says otherwise.

    Raises:
        InputError: no such file, no rows, a line that is no JSON object, whose keys differ from the first line's, or
            that holds a list or an object; the line is named. `NaN` as a target.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.jsonl")
        ...     _ = path.write_text('{"text": "a b", "label": 1}\n{"text": "c", "label": 0}\n')
        ...     read_json_table(path).to_dict("list")
        {'text': ['a b', 'c'], 'label': [1, 0]}
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    content = read_text(path)
    for line, text in numbered_lines(content):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            why = str(error) if isinstance(error, ValueError) else "nested too deeply"
            raise InputError(f"{path}: line {line} is not JSON ({why}); correct or remove it.") from None
        if not isinstance(row, dict) or not row:
            raise InputError(f'{path}: line {line} is no object with keys; write {{"text": …, "label": …}}.')
        if rows and row.keys() != rows[0].keys():
            key = min(row.keys() ^ rows[0].keys())
            verb = "has a key" if key in row else "has no"
            raise InputError(f"{path}: line {line} {verb} {key!r}, unlike the first; give every line the same keys.")
        for key, value in row.items():
            if isinstance(value, (list, dict)):
                raise InputError(f"{path}: line {line}, {key!r} is a {type(value).__name__}; give text or a number.")
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: has no rows; give one line at least.")
    table = pd.DataFrame({key: [row[key] for row in rows] for key in rows[0]})
    table.attrs[TARGET] = JSON_TARGET if JSON_TARGET in rows[0] else None
    if target in rows[0] and not any(isinstance(row[target], (str, type(None))) for row in rows):
        table[target] = written_target(_json_tokens(content, target), target, kind)
    return table


def _json_tokens(content: str, key: str) -> list[str]:
    """Returns the numbers, `true` and `false` under a key of JSON lines as they stand there."""
    values = [
        json.loads(text, parse_int=str, parse_float=str, parse_constant=str)[key] for _, text in numbered_lines(content)
    ]
    return [value if isinstance(value, str) else json.dumps(value) for value in values]


def read_tab(path: Path) -> "pandas.DataFrame":
    r"""Returns an Orange .tab file as a table; its class column, where it has one, stands in `attrs` under `TARGET`.

    Its first line names the columns. The second says what they hold: `continuous` (`c`) for numbers; `discrete` (`d`),
    `string` (`s`) or `time` (`t`) for text. The third says what they are for: `class` for the target; `meta` and
    `ignore` columns are left out. Where columns are marked `include=True`, as in the files of Orange's text mining,
    these alone are features. A missing value is an empty field or `?`.

    Args:
        path: a UTF-8 text file, its fields divided by tabs.

    Raises:
        InputError: no such file, fewer than three header lines, an unknown type, two class columns, no rows, a line
            with too few or too many fields, a number that is none; the line is named.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.tab")
        ...     _ = path.write_text("topic\tbody\nd\tstring\nclass\t\nspace\tto the moon\n")
        ...     table = read_tab(path)
        >>> table.to_dict("list"), table.attrs[TARGET]
        ({'topic': ['space'], 'body': ['to the moon']}, 'topic')
    """
    import pandas as pd

    records = csv_records(path, read_text(path), "\t", strict=True)
    columns = _tab_columns(list(itertools.islice(records, 3)), path)
    rows: list[tuple[int, list[str]]] = []
    for line, fields in records:
        if not any(fields):
            continue
        if len(fields) != len(columns):
            raise InputError(
                f"{path}: line {line} has {len(fields)} fields where line 1 has {len(columns)}; complete or remove it."
            )
        rows.append((line, fields))
    if not rows:
        raise InputError(f"{path}: has three header lines and no rows; give one row at least.")
    targets = [column.name for column in columns if "class" in column.flags]
    if len(targets) > 1:
        raise InputError(f"{path}: line 3 marks {len(targets)} columns as class; mark one.")
    marked = any("include=True" in column.flags for column in columns)
    kept = {
        column.name: [column.value(fields[place], path, line) for line, fields in rows]
        for place, column in enumerate(columns)
        if "class" in column.flags
        or ("include=True" in column.flags if marked else not {"meta", "ignore", "i", "m"} & column.flags)
    }
    table = pd.DataFrame(kept)
    table.attrs[TARGET] = targets[0] if targets else None
    return table


@dataclass(frozen=True)
class _TabColumn:
    """A column of a .tab file: its three header lines."""

    name: str
    holds: Literal["number", "text"]
    flags: frozenset[str]

    def value(self, field: str, path: Path, line: int) -> float | str | None:
        """Returns what a field of the column says, None where it is missing."""
        if field in _TAB_MISSING:
            return None
        if self.holds == "text":
            return field
        try:
            return float(field)
        except ValueError:
            raise InputError(
                f"{path}: line {line}, column {self.name!r} holds {field[:40]!r}, which is no number; correct it."
            ) from None


def _tab_columns(header: list[tuple[int, list[str]]], path: Path) -> list[_TabColumn]:
    if len(header) < 3:
        raise InputError(f"{path}: has {len(header)} lines; give three of header (names, types, flags), then the rows.")
    names, types, flags = (fields for _, fields in header)
    if len(types) != len(names) or len(flags) > len(names):
        raise InputError(
            f"{path}: lines 1 to 3 have {len(names)}, {len(types)} and {len(flags)} fields; give each column its name, "
            "type and flags."
        )
    for number, name in enumerate(names):
        if not name.strip() or name in names[:number]:
            raise InputError(f"{path}: column {number} (from 0) has no name of its own in line 1: {name!r}; rename it.")
    for each in types:
        if each not in _TAB_TYPES:
            raise unknown(f"{path}: line 2: type", each, _TAB_TYPES)
    flags = flags + [""] * (len(names) - len(flags))
    return [
        _TabColumn(name, _TAB_TYPES[each], frozenset(words.split()))
        for name, each, words in zip(names, types, flags, strict=True)
    ]
