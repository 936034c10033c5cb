"""The user's own code by name: `package.module:function`."""

import difflib
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kinfold.errors import InputError


def load_callable(path: str, argument: str) -> Callable[..., Any]:
    """Returns what `package.module:name` (or `package.module.name`) names.

    As with `python -m`, modules of the working directory can be imported. The directory stays on `sys.path`,
    because the code that is loaded may import more of its neighbours when it is called.

    Args:
        path: the module and, in it, the name.
        argument: what the user set to `path`, such as `model`, for messages.

    Raises:
        InputError: the module cannot be imported, has no such name, or the name is not callable.

    Example:
        >>> load_callable("math:sqrt", "loss")(4.0)
        2.0
    """
    module = path.partition(":")[0]
    if module.endswith(".py"):
        dotted = module.removesuffix(".py").removeprefix("./").replace("/", ".")
        raise InputError(f"{argument}: {path!r} names a file; name the module, {dotted + path[len(module) :]!r}.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = pkgutil.resolve_name(path)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise InputError(f"{argument}: {path!r} cannot be imported ({one_line(error)}){_nearest(error)}") from error
    if not callable(found):
        raise InputError(f"{argument}: {path!r} is a {type(found).__name__}; name a function or a class.")
    return found  # type: ignore[no-any-return]  # narrowed by callable() to a type that mypy cannot write


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
