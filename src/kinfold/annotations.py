"""What an argument's annotation lets a configuration say, as JSON schema: for checks, for words and for editors.

Only what YAML can hold is told: numbers, texts, lists and mappings. A class of another kind says nothing: by itself it
allows anything, from which it may well be made, and beside others these alone.
"""

import collections.abc
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, Union

from kinfold.errors import InputError, unknown

Schema: TypeAlias = dict[str, Any]

_PLAIN: Mapping[Any, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    Path: {"type": "string"},
    None: {"type": "null"},
    type(None): {"type": "null"},
    dict: {"type": "object"},
    collections.abc.Mapping: {"type": "object"},
}
_LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)


def parameters_of(maker: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """Returns the parameters of what makes a part, by name; None of a builtin that does not tell.

    Example:
        >>> list(parameters_of(lambda a, b=1: a) or ())
        ['a', 'b']
    """
    for evaluated in (True, False):  # an annotation in quotes may name what cannot be found
        try:
            return inspect.signature(maker, eval_str=evaluated).parameters
        except NameError:
            continue
        except (TypeError, ValueError):
            return None
    return None


def schema_of(annotation: Any) -> Schema:
    """Returns what values an annotation allows; `{}` is anything.

    Example:
        >>> schema_of(tuple[float | int, ...])
        {'type': 'array', 'items': {'type': 'number'}}
        >>> schema_of(Literal["copy", "blend"])
        {'enum': ['copy', 'blend']}
    """
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if isinstance(origin, collections.abc.Hashable) and origin in _PLAIN:
        return dict(_PLAIN[origin])
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return _any_of(arguments)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        items = [schema_of(one) for one in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin in _LISTS:
        items_of = schema_of(arguments[0]) if arguments else {}
        return {"type": "array", **({"items": items_of} if items_of else {})}
    return {}


def takes_names(annotation: Any) -> bool:
    """Returns whether a text given for it may be the import path of a class or function.

    Example:
        >>> takes_names(type[int]), takes_names(str | Callable[[int], int]), takes_names(str)
        (True, True, False)
    """
    if isinstance(annotation, str):  # in quotes
        return "Callable[" in annotation or "type[" in annotation
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return any(takes_names(one) for one in typing.get_args(annotation))
    return (typing.get_origin(annotation) or annotation) in (type, collections.abc.Callable)


def misfit(path: str, schema: Schema, value: Any) -> InputError | None:
    """Returns what is wrong with a value, or None.

    Args:
        path: the value's key, with dots, for the message.
        schema: as `schema_of` returns it.
        value: what YAML gave.

    Example:
        >>> print(misfit("transfer.forms", schema_of(tuple[Literal["copy", "blend"], ...]), ["copi"]))
        transfer.forms[0]: unknown name 'copi', did you mean 'copy'? Known: blend, copy.
        >>> print(misfit("optimizer.lr", schema_of(float | None), "fast"))
        optimizer.lr: is 'fast'; give a number or null.
    """
    if _fits(schema, value):
        return None
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            wrong = misfit(f"{path}[{i}]", _item_schema(schema, i), item)
            if wrong is not None:
                return wrong
    if isinstance(value, str) and all(isinstance(one, str) for one in schema.get("enum", [0])):
        return unknown(path, value, schema["enum"])
    return InputError(f"{path}: is {value!r}; give {words(schema)}.")


def words(schema: Schema) -> str:
    """Returns what a schema of `schema_of` allows, in words.

    Example:
        >>> words(schema_of(int | Literal["auto"] | None))
        'a whole number, auto or null'
    """
    if "anyOf" in schema:
        return _or([words(one) for one in schema["anyOf"]])
    if "enum" in schema:
        return _or([str(one) for one in schema["enum"]])
    if schema.get("type") == "array" and "prefixItems" in schema:
        return f"a list of {schema['minItems']}: {', '.join(map(words, schema['prefixItems']))}"
    if schema.get("type") == "array" and "items" in schema:
        return f"a list, each {words(schema['items'])}"
    return _WORDS[schema["type"]] if "type" in schema else "anything"


_WORDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "null": "null",
    "object": "a mapping",
    "array": "a list",
}


_ORDER = ("integer", "number", "boolean", "string", "array", "object", "enum", "null")


def _any_of(annotations: tuple[Any, ...]) -> Schema:
    told = [(schema_of(one), one) for one in annotations]
    if any(not schema and (one in (Any, object) or not inspect.isclass(one)) for schema, one in told):
        return {}
    schemas = [schema for schema, _ in told if schema]
    wider = {"type": "number"}
    distinct = [
        one
        for i, one in enumerate(schemas)
        if one not in schemas[:i] and not (one == {"type": "integer"} and wider in schemas)
    ]
    distinct.sort(key=lambda one: _ORDER.index(one.get("type", "enum")))  # typing gives `a | b` for `b | a` at times
    if distinct in ([], [{"type": "null"}]):
        return {}
    return {"anyOf": distinct} if len(distinct) > 1 else distinct[0]


def _fits(schema: Schema, value: Any) -> bool:
    if "anyOf" in schema:
        return any(_fits(one, value) for one in schema["anyOf"])
    if "enum" in schema:
        return any(value == one and type(value) is type(one) for one in schema["enum"])
    if "type" not in schema:
        return True
    kind: str = schema["type"]
    if kind == "array":
        listed = isinstance(value, (list, tuple)) and schema.get("minItems", len(value)) == len(value)
        return bool(listed) and all(_fits(_item_schema(schema, i), item) for i, item in enumerate(value))
    if isinstance(value, bool):
        return kind == "boolean"
    fits: bool = isinstance(value, _TYPES[kind])
    return fits


_TYPES: Mapping[str, Any] = {
    "boolean": bool,
    "integer": numbers.Integral,  # numpy's, too
    "number": numbers.Real,
    "string": str,
    "null": type(None),
    "object": Mapping,
}


def _item_schema(schema: Schema, i: int) -> Schema:
    if "anyOf" in schema:
        lists = [one for one in schema["anyOf"] if one.get("type") == "array"]
        return _item_schema(lists[0], i) if len(lists) == 1 else {}
    if i < len(schema.get("prefixItems", [])):
        each: Schema = schema["prefixItems"][i]
        return each
    items: Schema = schema.get("items", {})
    return items


def _or(alternatives: list[str]) -> str:
    return " or ".join(part for part in (", ".join(alternatives[:-1]), alternatives[-1]) if part)
