"""Texts: split into words, numbered by a vocabulary of the fitted rows, and padded to one length.

Rows are counted from 0 in every message.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt64
from torch import Tensor, nn

from kinfold.data.base import Dataset, Encoder, Kind, Label, TensorInputs
from kinfold.data.hashes import content_hashes
from kinfold.data.programs import Port, Program
from kinfold.data.table import TableDataset
from kinfold.data.targets import make_target, row_values
from kinfold.data.words import RULE, WORD, as_texts, column_texts, words_of
from kinfold.errors import InputError

PADDING = 0
"""The id behind the end of a text."""

UNKNOWN = 1
"""The id of a word that is not in the vocabulary."""


@dataclass(frozen=True)
class TextEncoder(Encoder):
    """Turns texts into word ids, int64 [N, L]: `PADDING` 0, `UNKNOWN` 1, then the vocabulary.

    A text is cut to its first `length` words. One without any word becomes a single `UNKNOWN`.

    Attributes:
        vocabulary: the word with the id 2, the one with the id 3, and so on.
        length: L.
        column: the column that holds the texts, where they come as a table; or None.

    Example:
        >>> encoder = TextEncoder.fit(["a cat", "a dog", "no"], np.array([0, 1]), min_count=2)
        >>> encoder.vocabulary, encoder.length
        (('a',), 2)
        >>> encoder.encode(["A mouse!", ""]).values
        tensor([[2, 1],
                [1, 0]])
    """

    vocabulary: tuple[str, ...]
    length: int
    column: str | None = None
    kind = "text"

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        rows: Int64[np.ndarray, " rows"],
        *,
        column: str | None = None,
        min_count: int = 2,
        max_words: int = 20_000,
        max_length: int = 256,
    ) -> "TextEncoder":
        """Returns an encoder fitted to the given rows only.

        Args:
            texts: all of them.
            rows: those whose words and lengths count.
            column: where texts stand in a table.
            min_count: how often a word must occur to get an id of its own.
            max_words: how many words, the most frequent first, get one.
            max_length: the greatest L. Otherwise L is the 95th percentile of the texts' lengths, so that a few long
                ones do not make all of them long.
        """
        counts: Counter[str] = Counter()
        lengths = []
        for row in rows:
            words = words_of(texts[row])
            counts.update(words)
            lengths.append(len(words))
        frequent = sorted(
            (word for word in counts if counts[word] >= min_count), key=lambda word: (-counts[word], word)
        )
        length = int(np.quantile(lengths, 0.95, method="higher"))
        return cls(tuple(frequent[:max_words]), max(1, min(length, max_length)), column)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def hints(self) -> dict[str, Any]:
        return {"vocabulary": len(self.vocabulary) + 2}

    def encode(self, features: Any) -> TensorInputs:
        texts = self._texts(features)
        id_of = {word: number for number, word in enumerate(self.vocabulary, UNKNOWN + 1)}
        ids = np.full((len(texts), self.length), PADDING, dtype=np.int64)
        for row, text in enumerate(texts):
            known = [id_of.get(word, UNKNOWN) for word in words_of(text)[: self.length]] or [UNKNOWN]
            ids[row, : len(known)] = known
        return TensorInputs(torch.from_numpy(ids))

    def _texts(self, features: Any) -> tuple[str, ...]:
        columns = getattr(features, "columns", None)  # a table, without importing pandas to ask
        if columns is None:
            return as_texts(features)
        if self.column not in columns:
            raise InputError(f"data: has no column {self.column!r}, which the model was trained on; add it.")
        return column_texts(features[self.column])

    def program(self) -> Program:
        what = f"word ids: {PADDING} behind the end, {UNKNOWN} for a word that is not in the vocabulary"
        about = {
            "words": RULE,
            "length": f"the first {self.length} words; a text without any is one unknown word",
            "vocabulary": {word: number for number, word in enumerate(self.vocabulary, UNKNOWN + 1)},
        }
        return Program((Port("ids", (self.length,), torch.int64, what),), nn.Identity(), self._tensors, about)

    def _tensors(self, features: Any) -> tuple[Int64[Tensor, "N L"]]:
        return (self.encode(features).values,)

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "vocabulary": list(self.vocabulary), "length": self.length, "column": self.column}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> "TextEncoder":
        return cls(tuple(spec["vocabulary"]), spec["length"], spec["column"])


@dataclass(frozen=True)
class TextDataset(Dataset):
    """Labelled texts: `features` is a tuple of N strings.

    Attributes:
        column: the column that held them, where they come from a table; or None.
        min_count: see `TextEncoder.fit`.
        max_words: see `TextEncoder.fit`.
        max_length: see `TextEncoder.fit`.
    """

    form = "text"
    standardised = True
    column: str | None = None
    min_count: int = 2
    max_words: int = 20_000
    max_length: int = 256

    def fit(self, rows: Int64[np.ndarray, " rows"]) -> TextEncoder:
        return TextEncoder.fit(
            self.features,
            rows,
            column=self.column,
            min_count=self.min_count,
            max_words=self.max_words,
            max_length=self.max_length,
        )

    def fingerprints(self) -> UInt64[np.ndarray, " N"]:
        return content_hashes(text.encode("utf-8", "surrogatepass") for text in self.features)


def from_texts(
    texts: Any,
    y: Any,
    *,
    name: str = "texts",
    kind: Kind | None = None,
    labels: Sequence[Label] | None = None,
    groups: Any = None,
    times: Any = None,
    min_count: int = 2,
    max_words: int = 20_000,
    max_length: int = 256,
) -> TextDataset:
    """Returns a data set of texts.

    Args:
        texts: N strings: a list, an array or a column of a table.
        y: [N] text, whole numbers or booleans (classes), or [N] or [N, K] floats (regression).
        name: a short name for messages and the run directory.
        kind: `classification` or `regression` where the type of `y` says otherwise.
        labels: the classes of an earlier run, in its order; default the labels of `y`, sorted.
        groups: [N] group of each row, or None.
        times: [N] number or date of each row, or None.
        min_count: how often a word must occur in the fitted rows to get an id of its own.
        max_words: how many words, the most frequent first, get one.
        max_length: the greatest number of words that are kept of a text.

    Raises:
        InputError: no rows, a row that is no text, no row with a word, lengths that differ between texts and y, a
            target or an option that cannot be used.

    Example:
        >>> dataset = from_texts(["good film", "bad film"], ["+", "-"], min_count=1)
        >>> encoder = dataset.fit(np.arange(2))
        >>> encoder.vocabulary, encoder.hints
        (('film', 'bad', 'good'), {'vocabulary': 5})
    """
    for option, value in (("min_count", min_count), ("max_words", max_words), ("max_length", max_length)):
        if value < 1:
            raise InputError(f"{option}: is {value}; give a whole number of at least 1.")
    features = as_texts(texts)
    if not any(map(WORD.search, features)):
        raise InputError("X: no text has a word in it; give texts.")
    target = make_target(y, kind=kind, labels=labels)
    if len(features) != len(target.values):
        raise InputError(f"y: has {len(target.values)} targets for {len(features)} texts; give one a text.")
    return TextDataset(
        name,
        features,
        target,
        row_values(groups, len(features), "groups"),
        row_values(times, len(features), "times", sortable=True),
        min_count=min_count,
        max_words=max_words,
        max_length=max_length,
    )


def from_text_table(table: TableDataset) -> TextDataset:
    """Returns a table whose only feature column holds texts as these; a missing text is an empty one.

    Raises:
        InputError: a row that holds something other than text.

    Example:
        >>> import pandas as pd
        >>> from kinfold.data import from_frame
        >>> frame = pd.DataFrame({"review": ["what a good film", "what a bad one"], "stars": [5, 1]})
        >>> from_text_table(from_frame(frame, "stars")).features
        ('what a good film', 'what a bad one')
    """
    (column,) = table.features.columns
    texts = column_texts(table.features[column])
    return TextDataset(table.name, texts, table.target, table.groups, table.times, str(column))
