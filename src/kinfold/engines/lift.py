"""From a function of one task to a function of all: in a loop, or by `torch.vmap`.

Both take and give trees (dicts, tuples, lists) in which every tensor has a leading task axis; whatever in the
arguments is not a tensor is common to all tasks.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

Lift: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]


def looped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function` over all tasks, one after another.

    Example:
        >>> looped(lambda x: {"sum": x.sum()})(torch.ones(2, 3))
        {'sum': tensor([3., 3.])}
    """

    def over_tasks(*trees: Any) -> Any:
        leaves, structure = tree_flatten(trees)
        count = next(len(leaf) for leaf in leaves if isinstance(leaf, Tensor))
        rows = []
        for t in range(count):
            row = [leaf[t] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            rows.append(tree_flatten(function(*tree_unflatten(row, structure))))
        columns = zip(*(leaves for leaves, _ in rows), strict=True)
        return tree_unflatten([torch.stack(column) for column in columns], rows[0][1])

    return over_tasks


def stacked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function` over all tasks as one tensor program; random draws inside differ between tasks.

    Example:
        >>> stacked(lambda x: {"sum": x.sum()})(torch.ones(2, 3))
        {'sum': tensor([3., 3.])}
    """

    def over_tasks(*trees: Any) -> Any:
        leaves, structure = tree_flatten(trees)
        is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]

        def of_tensors(*tensors: Tensor) -> Any:
            given = iter(tensors)
            whole = [next(given) if tensor else leaf for leaf, tensor in zip(leaves, is_tensor, strict=True)]
            return function(*tree_unflatten(whole, structure))

        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return torch.vmap(of_tensors, randomness="different")(*tensors)

    return over_tasks


def in_parts(lift: Lift, most: int) -> Lift:
    """Returns a lift that takes no more than so many tasks at once, one part after another.

    Example:
        >>> in_parts(stacked, 2)(lambda x: x.sum())(torch.ones(5, 3))
        tensor([3., 3., 3., 3., 3.])
    """

    def lifted(function: Callable[..., Any]) -> Callable[..., Any]:
        over_some = lift(function)

        def over_tasks(*trees: Any) -> Any:
            leaves, structure = tree_flatten(trees)
            count = next(len(leaf) for leaf in leaves if isinstance(leaf, Tensor))
            if count <= most:
                return over_some(*trees)
            parts = []
            for first in range(0, count, most):
                some = [leaf[first : first + most] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
                parts.append(tree_flatten(over_some(*tree_unflatten(some, structure))))
            columns = zip(*(leaves for leaves, _ in parts), strict=True)
            return tree_unflatten([torch.cat(column) for column in columns], parts[0][1])

        return over_tasks

    return lifted


def detached(tree: Any) -> Any:
    """Returns the tree with its tensors out of any autograd graph."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)
