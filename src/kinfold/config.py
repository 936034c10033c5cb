"""Parts by name, by mapping, or as objects: what the user writes for a rule, a method, an optimizer.

A part is written as a name (`amto`), as a name with arguments (`{name: amto, period: 2}`), as a class
(`{class_path: torch.optim.AdamW, init_args: {lr: 0.001}}`), or given as a Python object. `resolve` turns the
first three into the object, and `describe` an object back into what YAML can hold. Parts may hold parts.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kinfold.annotations import misfit, parameters_of, schema_of, takes_names
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

    Example:
        >>> from kinfold.methods import METHODS
        >>> resolve("methods", {"name": "label_smoothing", "epsilon": 0.2}, METHODS)
        LabelSmoothing(epsilon=0.2)
        >>> resolve("methods", {"name": "label_smoothing", "epsilom": 0.2}, METHODS)
        Traceback (most recent call last):
        kinfold.errors.InputError: methods.epsilom: unknown name 'epsilom', did you mean 'epsilon'? Known: epsilon.
    """
    if isinstance(spec, str) and ":" in spec and not bind:
        found = load_callable(spec, argument)
        if not isinstance(found, type):
            return found  # a function is the part itself; a class makes it, below
    if isinstance(spec, str):
        spec = {"class_path": spec} if "." in spec or ":" in spec else {"name": spec}
    if not isinstance(spec, Mapping):
        return spec
    maker: Callable[..., Any]
    given: Mapping[str, Any]
    if "name" in spec:
        if spec["name"] not in list(table):  # a list, since what YAML gives may not be hashable
            raise unknown(argument, spec["name"], table)
        maker, given = table[spec["name"]], {k: v for k, v in spec.items() if k != "name"}
    else:
        maker, given = class_of(argument, spec)
    where = argument if "name" in spec else f"{argument}.init_args"
    arguments = arguments_of(where, maker, given, table, first=int(bind))
    _check_bound(argument, maker, arguments, first=int(bind))
    if bind:
        return partial(maker, **arguments)
    try:
        return maker(**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"{argument}: {' '.join(str(error).split())}") from None


def class_of(argument: str, spec: Mapping[str, Any]) -> tuple[Callable[..., Any], Mapping[str, Any]]:
    """Returns what a mapping of `class_path` and `init_args` names: (the class or function, its arguments).

    Args:
        argument: its key, for messages.
        spec: the mapping.

    Raises:
        InputError: it has other keys, no `class_path`, or one that cannot be imported.
    """
    if "class_path" not in spec:
        raise InputError(f"{argument}: {dict(spec)} has neither name nor class_path; give one of them.")
    for key in spec:
        if key not in ("class_path", "init_args"):
            raise unknown(f"{argument}.{key}", key, ("class_path", "init_args"))
    given = spec.get("init_args") or {}
    if not isinstance(given, Mapping):
        raise InputError(f"{argument}: init_args is {given!r}; give names and values.")
    return load_callable(str(spec["class_path"]), argument), given


def arguments_of(
    where: str,
    maker: Callable[..., Any],
    given: Mapping[str, Any],
    table: Mapping[str, Callable[..., Any]] | None = None,
    first: int = 0,
) -> dict[str, Any]:
    """Returns the arguments for what makes a part: checked against its annotations, parts within them made.

    A mapping with `class_path`, or with a `name` where there is a table, is a part within the part. For an argument
    that is annotated as a class or a function, a text with a colon is one to be imported. Lists become tuples.

    Args:
        where: the key of the mapping that holds them, for messages.
        maker: what they are for.
        given: the arguments by name.
        table: the names that parts within it may have.
        first: how many arguments it is given by position beside these.

    Raises:
        InputError: an unknown argument, or a value of a wrong type.
    """
    parameters = parameters_of(maker)
    if parameters is None:  # a builtin without a signature speaks for itself when called
        return dict(given)
    known = dict(list(parameters.items())[first:])
    rest = any(p.kind is p.VAR_KEYWORD for p in known.values())
    made = {}
    for name, value in given.items():
        path = f"{where}.{name}"
        if name not in known and not rest:
            raise unknown(path, name, known)
        annotation = known[name].annotation if name in known else Any
        if isinstance(value, str) and ":" in value and takes_names(annotation):
            made[name] = load_callable(value, path)
            continue
        made[name] = _made(path, value, table or {})
        if name in known and value != known[name].default and not _holds_parts(value, table or {}):
            wrong = misfit(path, schema_of(annotation), value)
            if wrong is not None:
                raise wrong
    return made


def _is_part(value: Any, table: Mapping[str, Callable[..., Any]]) -> bool:
    return isinstance(value, Mapping) and ("class_path" in value or (bool(table) and "name" in value))


def _holds_parts(value: Any, table: Mapping[str, Callable[..., Any]]) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return _is_part(value, table) or any(_holds_parts(one, table) for one in inner)


def _made(path: str, value: Any, table: Mapping[str, Callable[..., Any]]) -> Any:
    """A value with the parts within it made, and lists as tuples."""
    if _is_part(value, table):
        return resolve(path, value, table)
    if isinstance(value, Mapping):
        return {key: _made(f"{path}.{key}", one, table) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_made(f"{path}[{i}]", one, table) for i, one in enumerate(value))
    return value


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


def names_in(described: Any) -> Iterator[str]:
    """Yields every text in a described value, at any depth.

    Example:
        >>> list(names_in({"model": {"class_path": "mine:Net", "init_args": {"width": 3}}, "data": "digits"}))
        ['mine:Net', 'digits']
    """
    if isinstance(described, Mapping):
        described = list(described.values())
    if isinstance(described, (list, tuple)):
        for value in described:
            yield from names_in(value)
    elif isinstance(described, str):
        yield described


def _path(function: Callable[..., Any]) -> str | None:
    """`package.module:name`, where importing it gives the function again."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<locals>")
    return None if module in (None, "__main__", "builtins") or "<" in name or "." in name else f"{module}:{name}"


def _check_bound(argument: str, maker: Callable[..., Any], arguments: Mapping[str, Any], first: int) -> None:
    """Checks that no argument is lacking; what is bound now is called with so many more later."""
    try:
        signature = inspect.signature(maker)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*[None] * first, **arguments)
    except TypeError as error:
        raise InputError(f"{argument}: {getattr(maker, '__name__', maker)}: {error}; give it.") from None
