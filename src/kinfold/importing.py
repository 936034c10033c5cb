"""The user's own code by name: `package.module:function`.

What the user types, or writes into a configuration, is their own will: any module that Python finds is imported, those
of the working directory included. What a run directory names may be somebody else's will. While it is read (see
`only_parts`) nothing is imported but the user's own classes and functions, which are those that modules of the working
directory define, and parts that do no more than compute: the classes of `_CLASSES` and the functions of `_FUNCTIONS`.
It is not enough that a name begins with `torch`: `torch:os.system` is a name, too, and `torch.load` runs what a file
says. Nor that a module is the user's own: `mine:os.system`.
"""

import difflib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinfold.errors import InputError

_CLASSES = (
    *("kinfold.candidates", "kinfold.methods", "kinfold.models", "kinfold.splits", "kinfold.tasks", "kinfold.transfer"),
    *("kinfold.engines.compression", "torch.nn", "torch.optim"),
    *("torchmetrics.aggregation", "torchmetrics.classification", "torchmetrics.regression"),
)
_FUNCTIONS = ("torch.nn.functional", "torchmetrics.functional.classification", "torchmetrics.functional.regression")
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_LONGEST = 200  # bytes of a module's name, which is to be that of a file, too
_NAMED = re.compile(r"(kinfold|torch\.nn|torch\.optim|torchmetrics)([.:][A-Za-z]\w*)+")


@dataclass(frozen=True)
class _Reading:
    """What is read that may be another's: whose names those are, and which of them the user gave, too."""

    source: str
    also: frozenset[str]


_READING: ContextVar[_Reading | None] = ContextVar("_READING", default=None)


@contextmanager
def only_parts(source: str, also: Iterable[str] = ()) -> Iterator[None]:
    """Lets nothing be imported by name but parts and the user's own, while it is entered.

    The user's own is what modules of the working directory define, unless they came with what is read.

    Args:
        source: whose names are read, for messages.
        also: names that the user has given, and that may be imported in any case. Of one within another, only those
            that both have.

    Example:
        >>> with only_parts("runs/theirs"):
        ...     load_callable("torch:os.system", "loss")
        Traceback (most recent call last):
        ...
        kinfold.errors.InputError: loss: runs/theirs names 'torch:os.system', which is no part of Kinfold, torch or \
torchmetrics and is not defined in the working directory; where you trust its maker, give --trust (trust=True).
    """
    outer, given = _READING.get(), frozenset(also)
    token = _READING.set(_Reading(source, given if outer is None else given & outer.also))
    try:
        yield
    finally:
        _READING.reset(token)


def require_part(part: bool, name: str, argument: str) -> None:
    """Refuses a name that is read from what may be another's, unless it is that of a part, or the user gave it, too.

    Args:
        part: whether it is known to do no more than compute, or to be the user's own.
        name: as it was written.
        argument: what is set to it, for the message.

    Raises:
        InputError: it is refused.
    """
    require(
        part,
        name,
        argument,
        "is no part of Kinfold, torch or torchmetrics and is not defined in the working directory",
    )


def require(harmless: bool, name: str, argument: str, does: str) -> None:
    """Refuses what is read from what may be another's, unless it is harmless, or the user gave it, too.

    Args:
        harmless: whether it does no more than compute.
        name: as it was written.
        argument: what is set to it, for the message.
        does: what is wrong with it, for the message.

    Raises:
        InputError: it is refused.
    """
    reading = _READING.get()
    if reading is not None and not harmless and name not in reading.also:
        said = repr(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…")
        raise InputError(
            f"{argument}: {reading.source} names {said}, which {does}; where you trust its maker, give --trust "
            "(trust=True)."
        )


def may_be_named(path: str) -> bool:
    """Returns whether a name is, by all that can be known before it is imported, that of a part or the user's own.

    Example:
        >>> with only_parts("runs/theirs"):
        ...     may_be_named("torch.nn:Linear"), may_be_named("theirs:net")
        (True, False)
    """
    return is_part_name(path) or _own_file(path) is not None


def _own_file(path: str) -> Path | None:
    """Returns the file of the working directory that a name's module is, where names may be another's.

    No file is that lies in what is read, or beside it: what somebody sent may hold more than one folder.
    """
    reading, here = _READING.get(), Path.cwd().resolve()
    if reading is None:
        return None
    module = path.partition(":")[0] if ":" in path else path.rpartition(".")[0]
    if _MODULE.fullmatch(module) is None or len(module.encode()) > _LONGEST:
        return None
    stem = here.joinpath(*module.split("."))
    file = next((file.resolve() for file in (stem / "__init__.py", stem.with_suffix(".py")) if file.is_file()), None)
    sent = Path(reading.source).resolve()
    if sent.is_file():
        sent = sent.parent
    if sent.is_relative_to(here):
        sent = here.joinpath(*sent.relative_to(here).parts[:1])
    return None if file is None or file.is_relative_to(sent) or not file.is_relative_to(here) else file


def is_part_name(path: str) -> bool:
    """Returns whether a name reads as that of a part, before anything is imported.

    Example:
        >>> is_part_name("torch.optim:AdamW"), is_part_name("torch.hub:load"), is_part_name("kinfold.__main__:main")
        (True, False, False)
    """
    return _NAMED.fullmatch(path) is not None


def load_callable(path: str, argument: str) -> Callable[..., Any]:
    """Returns what `package.module:name` (or `package.module.name`) names.

    As with `python -m`, modules of the working directory can be imported. The directory stays on `sys.path`,
    because the code that is loaded may import more of its neighbours when it is called.

    Args:
        path: the module and, in it, the name.
        argument: what the user set to `path`, such as `model`, for messages.

    Raises:
        InputError: the module cannot be imported, has no such name, or the name is not callable; or it is no part,
            and read from what may be another's (see `only_parts`).

    Example:
        >>> load_callable("math:sqrt", "loss")(4.0)
        2.0
    """
    module = path.partition(":")[0]
    if module.endswith(".py"):
        dotted = module.removesuffix(".py").removeprefix("./").replace("/", ".")
        raise InputError(f"{argument}: {path!r} names a file; name the module, {dotted + path[len(module) :]!r}.")
    own = _own_file(path)
    require_part(may_be_named(path), path, argument)
    here = str(Path.cwd())
    if here not in sys.path and not is_part_name(path):  # else nothing there is needed
        sys.path.insert(0, here)
    try:
        found = pkgutil.resolve_name(path)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise InputError(f"{argument}: {path!r} cannot be imported ({one_line(error)}){_nearest(error)}") from error
    if not callable(found):
        raise InputError(f"{argument}: {path!r} is a {type(found).__name__}; name a function or a class.")
    require_part(_is_part(found) or (own is not None and _is_defined_in(found, own)), path, argument)
    return found  # type: ignore[no-any-return]  # narrowed by callable() to a type that mypy cannot write


def _is_part(found: Callable[..., Any]) -> bool:
    """Returns whether it is a class or a function that does no more than compute, by where it was defined."""
    homes = _CLASSES if inspect.isclass(found) else _FUNCTIONS if inspect.isfunction(found) else ()
    module = f"{found.__module__}." if homes else ""
    return any(module.startswith(f"{home}.") for home in homes)


def _is_defined_in(found: Callable[..., Any], file: Path) -> bool:
    """Returns whether it is a class or a function that stands in the file itself, and is not just imported there."""
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        return False
    home = getattr(sys.modules.get(found.__module__), "__file__", None)
    return home is not None and Path(home).resolve() == file


def _nearest(error: Exception) -> str:
    """What an attribute that is not there may have been meant to be."""
    known = dir(error.obj) if isinstance(error, AttributeError) else []
    near = difflib.get_close_matches(str(getattr(error, "name", "")), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def one_line(error: BaseException) -> str:
    r"""Returns the error's type and message without line breaks.

    Example:
        >>> one_line(ValueError("two\nlines"))
        'ValueError: two lines'
    """
    return " ".join(f"{type(error).__name__}: {error}".split())
