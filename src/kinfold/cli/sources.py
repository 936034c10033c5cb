"""Constants and defaults of modules that import torch, read from their source: help has to be quick."""

import ast
from functools import cache
from importlib.resources import files
from typing import Any


def constant_in(module: str, name: str) -> Any:
    """Returns a module's constant of literals, without importing the module.

    Example:
        >>> constant_in("kinfold.assembling", "BY_RECIPE")[0]
        'model'
    """
    return ast.literal_eval(_Spelled(module).visit(ast.Name(name)))


def defaults_in(module: str, function: str) -> dict[str, Any]:
    """Returns the defaults of a function's arguments by name, without importing its module.

    Example:
        >>> defaults_in("kinfold.fitting", "fit")["val_fraction"]
        0.2
    """
    (found,) = (node for node in _tree(module).body if isinstance(node, ast.FunctionDef) and node.name == function)
    plain, arguments = found.args.defaults, found.args
    pairs = [*zip(arguments.args[len(arguments.args) - len(plain) :], plain, strict=True)]
    pairs += [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None]
    return {argument.arg: ast.literal_eval(_Spelled(module).visit(value)) for argument, value in pairs}


class _Spelled(ast.NodeTransformer):
    """Puts what is assigned to a name, here or where it is imported from, in its place."""

    def __init__(self, module: str):
        self._module = module

    def visit_Name(self, node: ast.Name) -> ast.AST:
        for statement in _tree(self._module).body:
            if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                if any(isinstance(target, ast.Name) and target.id == node.id for target in targets):
                    value: ast.AST = self.visit(statement.value)
                    return value
            if isinstance(statement, ast.ImportFrom) and statement.module is not None:
                for alias in statement.names:
                    if (alias.asname or alias.name) == node.id:
                        other: ast.AST = _Spelled(statement.module).visit(ast.Name(alias.name))
                        return other
        raise LookupError(f"{self._module} has no constant {node.id}.")


@cache
def _tree(module: str) -> ast.Module:
    package, *names = module.split(".")
    file = files(package).joinpath(*names[:-1], f"{names[-1]}.py")  # not by import, which would run the packages above
    return ast.parse(file.read_text(encoding="utf-8"))
