"""Parts by name, by mapping, or as objects: what the user writes for a rule, a method, an optimizer.

A part is written as a name (`amto`), as a name with arguments (`{name: amto, period: 2}`), as a class
(`{class_path: torch.optim.AdamW, init_args: {lr: 0.001}}`), or given as a Python object. `resolve` turns the
first three into the object, and `describe` an object back into what YAML can hold.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kinfold.errors import InputError, unknown
from kinfold.importing import load_callable


def resolve(argument: str, spec: Any, table: Mapping[str, Callable[..., Any]], bind: bool = False) -> Any:
    """Returns the object that `spec` means.

    Args:
        argument: its name, for messages.
        spec: a name of `table`, a mapping as above, `package.module:function`, which is that function, or an
            object, which is returned as it is.
        table: names → what makes the object.
        bind: return the maker with its arguments bound instead of calling it (optimizers, schedulers).

    Raises:
        InputError: an unknown name or argument, or a value that the maker refuses.
    """
    if isinstance(spec, str) and ":" in spec and not bind:
        found = load_callable(spec, argument)
        if not isinstance(found, type):
            return found  # a function is the part itself; a class makes it, below
    if isinstance(spec, str):
        spec = {"class_path": spec} if "." in spec or ":" in spec else {"name": spec}
    if not isinstance(spec, Mapping):
        return spec
    if "name" in spec:
        if spec["name"] not in list(table):  # a list, since what YAML gives may not be hashable
            raise unknown(argument, spec["name"], table)
        maker, arguments = table[spec["name"]], {k: v for k, v in spec.items() if k != "name"}
    elif "class_path" in spec:
        for key in spec:
            if key not in ("class_path", "init_args"):
                raise unknown(argument, key, ("class_path", "init_args"))
        given = spec.get("init_args") or {}
        if not isinstance(given, Mapping):
            raise InputError(f"{argument}: init_args is {given!r}; give names and values.")
        maker, arguments = load_callable(str(spec["class_path"]), argument), dict(given)
    else:
        raise InputError(f"{argument}: {dict(spec)} has neither name nor class_path; give one of them.")
    _check_arguments(argument, maker, arguments, bind)
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    if bind:
        return partial(maker, **arguments)
    try:
        return maker(**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"{argument}: {' '.join(str(error).split())}") from None


def describe(value: Any) -> Any:
    """Returns what `config.yaml` says of a value: plain data as it is, and parts so that `resolve` remakes them.

    What cannot be remade (a function of the user's session, a module) is described by its name in angle brackets.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if isinstance(value, partial) and not value.args and _path(value.func):
        return {"class_path": _path(value.func), "init_args": describe(value.keywords)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
        return {"class_path": _path(type(value)), "init_args": fields} if _path(type(value)) else f"<{value!r}>"
    if isinstance(value, type) or inspect.isfunction(value):
        return _path(value) or f"<{value.__qualname__}>"
    return f"<{type(value).__module__}.{type(value).__qualname__}>"


def is_object(described: Any) -> bool:
    """Returns whether `describe` could not say how to remake the value, or a part of it.

    Example:
        >>> is_object(describe([object()])), is_object(describe({"name": "amto"}))
        (True, False)
    """
    if isinstance(described, Mapping):
        return any(map(is_object, described.values()))
    if isinstance(described, list):
        return any(map(is_object, described))
    return isinstance(described, str) and described.startswith("<") and described.endswith(">")


def _path(function: Callable[..., Any]) -> str | None:
    """`package.module:name`, where importing it gives the function again."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<locals>")
    return None if module in (None, "__main__", "builtins") or "<" in name or "." in name else f"{module}:{name}"


def _check_arguments(argument: str, maker: Callable[..., Any], arguments: Mapping[str, Any], bind: bool) -> None:
    try:
        signature = inspect.signature(maker)
    except (TypeError, ValueError):  # a builtin without a signature speaks for itself when called
        return
    parameters = signature.parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in arguments:
            if name not in parameters:
                raise unknown(argument, name, parameters)
    try:
        signature.bind(*[None] * bind, **arguments)  # what is bound now is called with one argument later
    except TypeError as error:
        raise InputError(f"{argument}: {getattr(maker, '__name__', maker)}: {error}; give it.") from None
