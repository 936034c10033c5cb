"""The JSON schemas of the configurations of `train` and `compare`: for editors, and for the completion of names.

They are files, so that printing one imports nothing; `kinfold.cli.schema` writes them.
"""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any


def schema_text(command: str) -> str:
    """Returns the schema of a command's configuration file.

    Example:
        >>> '"title": "kinfold train"' in schema_text("train")
        True
    """
    return files(__name__).joinpath(f"{command}.json").read_text(encoding="utf-8").rstrip()


def names_in(schema: Mapping[str, Any], key: str) -> list[str]:
    """Returns the words that a schema knows for a key: what it may be, or examples of that.

    Example:
        >>> import json
        >>> names_in(json.loads(schema_text("train")), "scheduler")
        ['auto', 'constant', 'cosine', 'linear']
    """
    found: set[str] = set()
    waiting = [schema["properties"][key]]
    while waiting:
        node = waiting.pop()
        if "$ref" in node:
            waiting.append(schema["$defs"][node["$ref"].rpartition("/")[2]])
        waiting += [one for one in node.get("anyOf", []) if "properties" not in one]
        found |= {one for one in [*node.get("enum", []), *node.get("examples", [])] if isinstance(one, str)}
    return sorted(found)
