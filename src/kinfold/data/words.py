"""What texts are: words, columns of free text, and lists of strings, each checked to be one."""

import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from kinfold.errors import InputError

if TYPE_CHECKING:  # importing pandas takes long, and lists of texts do without it
    import pandas

MIN_WORDS = 3
"""How many words the texts of a column have, in the mean, that is no column of categories."""

MIN_DISTINCT = 0.5
"""What share of them is distinct, at least."""

WORD = re.compile(r"\w+|[^\w\s]")
"""A word: a run of letters, digits and underscores, or one other character."""


RULE = (
    "of the text in Unicode's composed form (NFC) and lower case: runs of letters, digits and underscores, and each "
    "other character that is no white space by itself"
)
"""What words are, in words, for those who export a model that reads them."""


def words_of(text: str) -> list[str]:
    """Returns the words of a text: runs of letters, digits and underscores, and each other character by itself.

    Words are in Unicode's composed form (NFC) and in lower case; white space divides them and is left out. A script
    without spaces between words gives long words: divide such texts by spaces beforehand.

    Example:
        >>> words_of("Don't panic: 42!")
        ['don', "'", 't', 'panic', ':', '42', '!']
    """
    return WORD.findall(unicodedata.normalize("NFC", text).lower())


def as_texts(texts: Any) -> tuple[str, ...]:
    """Returns the texts of a list, an array or a column, each checked to be one.

    Raises:
        InputError: no rows, or a row that is no text.

    Example:
        >>> as_texts(["a", "b"])
        ('a', 'b')
    """
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise InputError(f"X: is a {type(texts).__name__} where texts are needed; give a list of them.")
    listed = tuple(str(text) if isinstance(text, str) else text for text in texts)  # numpy's strings are a subclass
    if not listed:
        raise InputError("X: has no rows; give one text at least.")
    for row, text in enumerate(listed):
        if not isinstance(text, str):
            raise InputError(f"X: row {row} is a {type(text).__name__} where a text is needed; correct or drop it.")
    return listed


def is_texts(values: Any) -> bool:
    """Returns whether these are a list or an array of texts, going by the first.

    Example:
        >>> is_texts(["a b", "c"]), is_texts([[1.0]])
        (True, False)
    """
    return isinstance(values, (list, tuple, np.ndarray)) and len(values) > 0 and isinstance(values[0], str)


def is_free_text(column: "pandas.Series[Any]") -> bool:
    """Returns whether a column of a table holds texts to be read, and not names of categories.

    It does if its values have `MIN_WORDS` words in the mean and are distinct in more than the share `MIN_DISTINCT` of
    the rows; or if it holds words and is called `text`.

    Example:
        >>> import pandas as pd
        >>> is_free_text(pd.Series(["what a good film", "what a bad one"])), is_free_text(pd.Series(["good", "bad"]))
        (True, False)
    """
    import pandas as pd

    known = column.dropna()
    if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.infer_dtype(known) != "string":
        return False
    if str(column.name).lower() == "text":
        return any(map(WORD.search, known))
    words = sum(len(text.split()) for text in known)
    return words >= MIN_WORDS * len(known) and known.nunique() >= MIN_DISTINCT * len(known)


def column_texts(series: "pandas.Series[Any]") -> tuple[str, ...]:
    """Returns the texts of a table's column, a missing one as an empty one.

    Raises:
        InputError: a row that is no text.
    """
    return as_texts(series.astype(object).where(series.notna(), ""))
