"""Tables: columns of numbers, booleans, dates and categories, scaled and one-hot encoded from the fitted rows.

Rows are counted from 0 in every message.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt64
from torch import Tensor, nn

from kinfold.data.base import Dataset, Encoder, Kind, Label, TensorInputs
from kinfold.data.columns import CategoryColumn, NumberColumn, numbers_of, sort_of
from kinfold.data.programs import Port, Program
from kinfold.data.targets import make_target, row_values
from kinfold.data.text_column import TextColumn
from kinfold.data.words import RULE, column_texts, is_free_text
from kinfold.errors import InputError, unknown
from kinfold.processes import check_room

if TYPE_CHECKING:  # importing pandas takes long, and arrays do without it
    import pandas

Fitted: TypeAlias = NumberColumn | CategoryColumn | TextColumn

COLUMNS: dict[str, type[NumberColumn] | type[CategoryColumn] | type[TextColumn]] = {
    "number": NumberColumn,
    "category": CategoryColumn,
    "text": TextColumn,
}
"""How a column may be encoded, by what `model.json` calls it."""


@dataclass(frozen=True)
class TableEncoder(Encoder):
    """Turns the columns of a table into float32 [N, D], as fitted (see `NumberColumn`, `CategoryColumn`, `TextColumn`).

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"age": [20.0, 40.0, 30.0], "town": ["Ulm", "Bonn", "Ulm"]})
        >>> encoder = TableEncoder.fit(frame, np.array([0, 1]))
        >>> encoder.encode(frame).values
        tensor([[-1.,  0.,  1.],
                [ 1.,  1.,  0.],
                [ 0.,  0.,  1.]])
    """

    columns: tuple[Fitted, ...]
    kind = "table"

    @classmethod
    def fit(
        cls, features: "pandas.DataFrame", rows: Int64[np.ndarray, " rows"], texts: Sequence[str] | None = None
    ) -> "TableEncoder":
        """Returns an encoder of all columns of `features`, fitted to the given rows only.

        Args:
            features: the table.
            rows: those whose values count.
            texts: the columns of free text; default those that look it (see `is_free_text`).

        Raises:
            InputError: an infinite value, or a type of column that cannot be encoded.
        """
        columns: list[Fitted] = []
        for name, series in features.items():
            sort = sort_of(series, str(name))
            free = is_free_text(series.iloc[rows]) if texts is None else name in texts
            if free:
                columns.append(TextColumn.fit(str(name), series, rows))
            elif sort == "text":
                columns.append(CategoryColumn.fit(str(name), series, rows))
            else:
                columns.append(NumberColumn.fit(str(name), sort, series, rows))
        return cls(tuple(columns))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (sum(column.width for column in self.columns),)

    @property
    def hints(self) -> dict[str, Any]:
        return {"widths": [column.width for column in self.columns]}

    @property
    def written(self) -> tuple[str, ...]:
        """The columns of categories and of text: `01`, `1.0` and `true` are words there, whatever else a file holds."""
        return tuple(column.name for column in self.columns if not isinstance(column, NumberColumn))

    def encode(self, features: Any) -> TensorInputs:
        frame = self._frame(features)
        width = sum(column.width for column in self.columns)
        check_room(4 * len(frame) * width, f"{len(frame)} rows of {width} encoded columns", "give fewer of either")
        blocks = [column.encode(frame[column.name]) for column in self.columns]
        return TensorInputs(torch.from_numpy(np.concatenate(blocks, axis=1)))

    def _frame(self, features: Any) -> "pandas.DataFrame":
        frame = _checked(features)
        for column in self.columns:
            if column.name not in frame.columns:
                raise InputError(f"data: has no column {column.name!r}, which the model was trained on; add it.")
        return frame

    def program(self) -> Program:
        numbers, categories, texts = self._by_kind()
        ports = []
        if numbers:
            what = "numbers, booleans as 0 and 1, dates in seconds since 1970 (UTC); NaN where missing"
            ports.append(Port("numbers", (len(numbers),), torch.float64, what))
        if categories:
            ports.append(Port("codes", (len(categories),), torch.int64, "the number of each column's category"))
        for place, text in enumerate(texts):
            what = f"how often each word of the vocabulary stands in {text.name!r}; NaN where it is missing"
            ports.append(Port(f"words_{place}", (len(text.vocabulary),), torch.float32, what))
        about = [
            *(
                {"name": column.name, "input": "numbers", "place": place, "holds": column.sort}
                for place, column in enumerate(numbers)
            ),
            *(
                {
                    "name": column.name,
                    "input": "codes",
                    "place": place,
                    "codes": {text: code for code, text in enumerate(column.categories)},
                    "missing": column.code_of_missing,
                    "others": -1,
                }
                for place, column in enumerate(categories)
            ),
            *(
                {"name": column.name, "input": f"words_{place}", "words": RULE, "vocabulary": list(column.vocabulary)}
                for place, column in enumerate(texts)
            ),
        ]
        return Program(tuple(ports), FromTable(self.columns), self._tensors, {"columns": about})

    def _by_kind(self) -> tuple[list[NumberColumn], list[CategoryColumn], list[TextColumn]]:
        return _by_kind(self.columns)

    def _tensors(self, features: Any) -> tuple[Tensor, ...]:
        frame, tensors = self._frame(features), []
        numbers, categories, texts = self._by_kind()
        if numbers:
            columns = [numbers_of(frame[column.name], column.name, column.sort) for column in numbers]
            tensors.append(torch.from_numpy(np.stack(columns, axis=1)))
        if categories:
            tensors.append(torch.from_numpy(np.stack([each.codes(frame[each.name]) for each in categories], axis=1)))
        return (*tensors, *(torch.from_numpy(each.counts(frame[each.name])) for each in texts))

    def spec(self) -> dict[str, Any]:
        kinds = {column: kind for kind, column in COLUMNS.items()}
        columns = [{"encoding": kinds[type(column)], **dataclasses.asdict(column)} for column in self.columns]
        return {"kind": self.kind, "columns": columns}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> "TableEncoder":
        columns: list[Fitted] = []
        for state in spec["columns"]:
            fields = {key: value for key, value in state.items() if key != "encoding"}
            values: dict[str, Any] = {key: _tuples(value) for key, value in fields.items()}
            columns.append(COLUMNS[state["encoding"]](**values))
        return cls(tuple(columns))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _by_kind(columns: Sequence[Fitted]) -> tuple[list[NumberColumn], list[CategoryColumn], list[TextColumn]]:
    return (
        [column for column in columns if isinstance(column, NumberColumn)],
        [column for column in columns if isinstance(column, CategoryColumn)],
        [column for column in columns if isinstance(column, TextColumn)],
    )


@final
class FromTable(nn.Module):
    """The columns of a table as one row of numbers, as `TableEncoder.encode` gives them.

    Args:
        columns: fitted.

    Example:
        >>> encoder = TableEncoder((NumberColumn("age", "number", 30.0, 30.0, 10.0, True),))
        >>> FromTable(encoder.columns)(torch.tensor([[20.0], [torch.nan]], dtype=torch.float64))
        tensor([[-1.,  0.],
                [ 0.,  1.]])
    """

    def __init__(self, columns: Sequence[Fitted]):
        super().__init__()
        numbers, categories, texts = _by_kind(columns)
        self.has_numbers, self.has_codes = bool(numbers), bool(categories)
        for name in ("fill", "shift", "scale"):
            values = torch.tensor([getattr(column, name) for column in numbers], dtype=torch.float64)
            self.register_buffer(name, values)
        # What is one-hot is asked of the column `asked`: is its code `code`?
        one_hot = [(place, code) for place, column in enumerate(categories) for code in range(column.width)]
        self.register_buffer("asked", torch.tensor([place for place, _ in one_hot], dtype=torch.int64))
        self.register_buffer("code", torch.tensor([code for _, code in one_hot], dtype=torch.int64))
        self.texts = nn.ModuleList(column.module() for column in texts)
        self.register_buffer("order", torch.tensor(_order(columns), dtype=torch.int64))

    def forward(self, *tensors: Tensor) -> Float32[Tensor, "N D"]:
        """Returns the encoded rows of the ports' tensors."""
        given, blocks = list(tensors), []
        if self.has_numbers:
            numbers = given.pop(0)
            missing = numbers.isnan()
            filled = torch.where(missing, self.get_buffer("fill"), numbers)
            scaled = (filled - self.get_buffer("shift")) / self.get_buffer("scale")
            blocks += [scaled.to(torch.float32), missing.to(torch.float32)]
        if self.has_codes:
            codes = given.pop(0).index_select(1, self.get_buffer("asked"))
            blocks.append((codes == self.get_buffer("code")).to(torch.float32))
        blocks += [text(counts) for text, counts in zip(self.texts, given, strict=True)]
        return torch.cat(blocks, dim=1).index_select(1, self.get_buffer("order"))


def _order(columns: Sequence[Fitted]) -> list[int]:
    """Returns where in the blocks of `FromTable` each number of an encoded row stands."""
    numbers, categories, texts = _by_kind(columns)
    places: dict[str, list[int]] = {
        column.name: [place, len(numbers) + place][: column.width] for place, column in enumerate(numbers)
    }
    after = 2 * len(numbers)
    for column in (*categories, *texts):
        places[column.name] = list(range(after, after + column.width))
        after += column.width
    return [place for column in columns for place in places[column.name]]


@dataclass(frozen=True)
class TableDataset(Dataset):
    """Labelled rows of a table: `features` is a pandas DataFrame of the feature columns alone.

    Attributes:
        texts: the columns of free text, where somebody says; None for those that look it.

    Raises:
        InputError: there is no such column, or it holds something other than text.
    """

    form = "table"
    standardised = True
    texts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for column in self.texts or ():
            if column not in self.features.columns:
                raise unknown("texts", column, self.features.columns)
            column_texts(self.features[column])

    def fit(self, rows: Int64[np.ndarray, " rows"]) -> TableEncoder:
        return TableEncoder.fit(self.features, rows, self.texts)

    def fingerprints(self) -> UInt64[np.ndarray, " N"]:
        import pandas as pd

        return pd.util.hash_pandas_object(self.features, index=False).to_numpy(dtype=np.uint64)


def from_frame(
    frame: "pandas.DataFrame",
    target: Any,
    *,
    name: str = "table",
    groups: str | None = None,
    times: str | None = None,
    kind: Kind | None = None,
    labels: Sequence[Label] | None = None,
    texts: Sequence[str] | None = None,
) -> TableDataset:
    """Returns a data set of a pandas DataFrame: every column but the named ones is a feature.

    Args:
        frame: the labelled rows. Numbers, booleans, dates, text and categories are encoded; values may be
            missing anywhere but in the target, the groups and the times.
        target: the name of the column to predict, or [N] or [N, K] targets that stand outside the frame.
        name: a short name for messages and the run directory.
        groups: the name of the column that says to which group a row belongs, or None.
        times: the name of the column that says when a row was (numbers, dates or ISO 8601 text), or None.
        kind: `classification` or `regression` where the target's type says otherwise: floats are values and not
            classes, even if all are whole and few differ (1.0, 2.0).
        labels: the classes of an earlier run, in its order; default the target's own, sorted.
        texts: the names of the columns of free text, `()` for none; default those that look it: of three words or
            more in the mean and mostly distinct, or called `text`.

    Raises:
        InputError: an unknown or doubled column, columns of several levels, no rows, no feature columns, a missing
            or infinite target, a target with one class.

    Example:
        >>> import pandas as pd
        >>> dataset = from_frame(pd.DataFrame({"age": [20, 40], "buys": ["yes", "no"]}), "buys")
        >>> list(dataset.features.columns), dataset.target.labels
        (['age'], ('no', 'yes'))
    """
    frame = _checked(frame)
    named = {"target": target if isinstance(target, str) else None, "groups": groups, "times": times}
    chosen = {argument: column for argument, column in named.items() if column is not None}
    for argument, column in chosen.items():
        if column not in frame.columns:
            raise unknown(argument, column, frame.columns)
        if list(chosen.values()).count(column) > 1:
            raise InputError(f"{argument}: column {column!r} is named twice; target, groups and times must differ.")
    features = frame.drop(columns=list(chosen.values()))
    if features.shape[1] == 0:
        raise InputError(f"data: {name} has no feature columns beside {', '.join(chosen.values())}; add one.")
    if isinstance(target, str):
        made = make_target(_whole(frame[target], target), name=target, kind=kind, labels=labels)
    else:
        made = make_target(target, kind=kind, labels=labels)
    if len(made.values) != len(frame):
        raise InputError(f"y: has {len(made.values)} targets for {len(frame)} rows of X; give one a row.")
    return TableDataset(
        name,
        features,
        made,
        None if groups is None else row_values(_whole(frame[groups], groups), len(frame), "groups"),
        None if times is None else row_values(_moments(frame[times], times), len(frame), "times", sortable=True),
        None if texts is None else tuple(texts),
    )


def _checked(frame: Any) -> "pandas.DataFrame":
    """Returns the frame with its columns' names as text, each standing once."""
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"data: is a {type(frame).__name__} where a table with named columns is needed.")
    if len(frame) == 0:
        raise InputError("data: the table has no rows; give one at least.")
    if isinstance(frame.columns, pd.MultiIndex):
        raise InputError(
            f"data: the names of the columns have {frame.columns.nlevels} levels, such as {frame.columns[0]!r}; "
            "join each into one name."
        )
    named: pd.DataFrame = frame.rename(columns=str)
    doubled = named.columns[named.columns.duplicated()]
    if len(doubled):
        raise InputError(f"data: two columns are called {doubled[0]!r}; rename one.")
    return named


def _whole(series: "pandas.Series[Any]", name: str) -> "pandas.Series[Any]":
    missing = series.isna().to_numpy()
    if missing.any():
        raise InputError(f"{name}: row {int(missing.argmax())} has no value; fill it or drop the row.")
    return series


def _moments(series: "pandas.Series[Any]", name: str) -> Float64[np.ndarray, " N"]:
    """Returns when each row was, as a number: dates, written out or not, in seconds."""
    sort = sort_of(series, name)
    return numbers_of(_whole(series, name), name, "date" if sort == "text" else sort)
