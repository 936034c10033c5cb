"""A column of free text in a table, as columns of numbers: TF-IDF, reduced by a truncated singular value decomposition.

Deerwester, Dumais, Furnas, Landauer, Harshman, *Indexing by latent semantic analysis*, JASIS 1990.

Legend: N rows, V words, K components.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, Shaped
from torch import Tensor, nn

from kinfold.data.columns import Column
from kinfold.data.words import column_texts, words_of
from kinfold.errors import InputError

if TYPE_CHECKING:  # importing pandas takes long, and arrays do without it
    import pandas

MAX_WORDS = 2_000
"""How many words, those of the most rows first, count (V)."""

MAX_COMPONENTS = 32
"""How many numbers a text becomes at most (K)."""


@final
@dataclass(frozen=True)
class TextColumn(Column):
    """Free text: how often each word occurs, weighed, reduced to K numbers.

    With n_v the count of word v in a text, its weight is (1 + ln n_v) · idf_v, or 0 where n_v is 0; the weights of a
    text are brought to the length 1. idf_v = 1 + ln((1 + N) / (1 + N_v)), where N_v of the N fitted rows have v. The
    rows are projected on the K leading right singular vectors, and the projections z become (z − shift) / scale. The
    scale is one for all of them: the strongest gets the deviation 1, and the others keep their proportion to it.

    Attributes:
        vocabulary: the V words that count.
        idf: [V] their weights.
        components: K rows of V: singular vectors of the fitted rows' weights.
        shift: [K] means of the fitted rows.
        scale: the greatest of their deviations; 1 where all are 0.
        indicator: whether texts were missing, so that a 0/1 column says where. A missing text is an empty one.

    Example:
        >>> import pandas as pd
        >>> texts = pd.Series(["a good film", "a bad film", "a film, a film", None])
        >>> column = TextColumn.fit("review", texts, np.arange(4))
        >>> column.vocabulary, column.width
        (('a', 'film'), 3)
        >>> column.encode(texts)[:, 2]
        array([0., 0., 0., 1.], dtype=float32)
    """

    vocabulary: tuple[str, ...]
    idf: tuple[float, ...]
    components: tuple[tuple[float, ...], ...]
    shift: tuple[float, ...]
    scale: float
    indicator: bool

    @property
    def width(self) -> int:
        return len(self.components) + self.indicator

    @classmethod
    def fit(cls, name: str, series: "pandas.Series[Any]", rows: Int64[np.ndarray, " rows"]) -> "TextColumn":
        """Returns the column fitted to the given rows of `series`: words that are in two of them, if there are any.

        Raises:
            InputError: a row holds something other than text, or no row has a word.
        """
        from sklearn.utils.extmath import randomized_svd  # its import takes long

        fitted = series.iloc[rows]
        in_rows: Counter[str] = Counter()
        for text in column_texts(fitted):
            in_rows.update(set(words_of(text)))
        if not in_rows:
            raise InputError(f"data: column {name!r} has no word in the rows to train on; leave it out.")
        least = min(2, max(in_rows.values()))
        frequent = sorted((word for word in in_rows if in_rows[word] >= least), key=lambda word: (-in_rows[word], word))
        vocabulary = tuple(frequent[:MAX_WORDS])
        idf = tuple(1 + float(np.log((1 + len(rows)) / (1 + in_rows[word]))) for word in vocabulary)
        column = cls(name, vocabulary, idf, (), (), 1.0, bool(fitted.isna().any()))
        weights = column._weights(fitted)
        count = min(MAX_COMPONENTS, *weights.shape)
        _, _, found = randomized_svd(weights, count, random_state=0)
        components = np.round(found, 7)  # that many digits are short in a file, and make no odds
        projected: Float64[np.ndarray, "N K"] = weights @ components.T
        return cls(
            name,
            vocabulary,
            idf,
            tuple(tuple(row) for row in components.tolist()),
            tuple(projected.mean(axis=0).tolist()),
            float(projected.std(axis=0).max()) or 1.0,
            column.indicator,
        )

    def counts(self, series: "pandas.Series[Any]") -> Float32[np.ndarray, "N V"]:
        """Returns how often each word occurs in each row; NaN in all of a row whose text is missing."""
        found: Float32[np.ndarray, "N V"] = np.asarray(self._counts(series).toarray(), dtype=np.float32)
        found[series.isna().to_numpy()] = np.nan
        return found

    def encode(self, series: "pandas.Series[Any]") -> Float32[np.ndarray, "N width"]:
        projected = self._weights(series) @ np.array(self.components).T
        scaled = ((projected - np.array(self.shift)) / self.scale).astype(np.float32)
        missing = series.isna().to_numpy()[:, None].astype(np.float32)
        encoded: Float32[np.ndarray, "N width"] = np.concatenate([scaled, missing][: 1 + self.indicator], axis=1)
        return encoded

    def module(self) -> "FromCounts":
        """Returns the way from the counts of words to the encoded column."""
        return FromCounts(self)

    def _counts(self, series: "pandas.Series[Any]") -> Any:
        from scipy.sparse import csr_array

        place = {word: number for number, word in enumerate(self.vocabulary)}
        places: list[int] = []
        counts: list[int] = []
        ends = [0]
        for text in column_texts(series):
            known = Counter(place[word] for word in words_of(text) if word in place)
            places += known.keys()
            counts += known.values()
            ends.append(len(places))
        values = np.array(counts, dtype=np.float64), np.array(places, dtype=np.int64), np.array(ends, dtype=np.int64)
        return csr_array(values, shape=(len(series), len(self.vocabulary)))

    def _weights(self, series: "pandas.Series[Any]") -> Any:
        """Returns the weights of each row, sparse [N, V]."""
        weights = self._counts(series)
        weights.data = (1 + np.log(weights.data)) * np.array(self.idf)[weights.indices]
        rows = np.repeat(np.arange(len(series)), np.diff(weights.indptr))
        lengths: Shaped[np.ndarray, " N"] = np.sqrt(np.bincount(rows, weights.data**2, minlength=len(series)))
        weights.data /= lengths[rows]
        return weights


@final
class FromCounts(nn.Module):
    """What `TextColumn.encode` does, from the counts of words.

    Args:
        column: fitted.
    """

    def __init__(self, column: TextColumn):
        super().__init__()
        self.indicator, self.scale = column.indicator, column.scale
        for name in ("idf", "components", "shift"):
            self.register_buffer(name, torch.tensor(getattr(column, name), dtype=torch.float64))

    def forward(self, counts: Float32[Tensor, "N V"]) -> Float32[Tensor, "N width"]:
        """Returns the encoded column."""
        missing = counts.isnan()
        known = torch.where(missing, 0.0, counts).double()
        weights = torch.where(known > 0, 1 + known.clamp_min(1.0).log(), 0.0) * self.get_buffer("idf")
        length = weights.square().sum(1, keepdim=True).sqrt().clamp_min(1.0)  # an idf, and so a length, is 1 at least
        projected = (weights / length) @ self.get_buffer("components").T
        scaled = ((projected - self.get_buffer("shift")) / self.scale).to(torch.float32)
        if not self.indicator:
            return scaled
        return torch.cat([scaled, missing[:, :1].to(torch.float32)], dim=1)
