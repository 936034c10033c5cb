"""What is asked of a recorded step's graph, and put into it, by all that simplifies it: see `simplify`."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.fx import Graph, Node

_aten = torch.ops.aten


def arguments(node: Node) -> Sequence[Any]:
    """Returns what a node is called with, of kinds that its operation settles."""
    return node.args


def is_transposed(node: Any) -> TypeGuard[Node]:
    """Whether a node exchanges the last two of three axes."""
    if not (isinstance(node, Node) and node.target is _aten.transpose.int and node.meta["val"].ndim == 3):
        return False
    return {axis % 3 for axis in node.args[1:] if isinstance(axis, int)} == {1, 2}


def is_only_here(node: Any, target: Any) -> TypeGuard[Node]:
    """Whether a node is the result of an operation, and one other node alone reads it."""
    return isinstance(node, Node) and node.target is target and len(node.users) == 1


def put(graph: Graph, target: Any, given: tuple[Any, ...], value: Tensor, **options: Any) -> Node:
    """Returns a call that is put into a graph where it is at; `value` is like its result."""
    node = graph.call_function(target, given, options)
    node.meta["val"] = value
    return node


def turned(graph: Graph, node: Any) -> Any:
    """Returns a node of three axes with the last two exchanged: the one that it was made from, or one put in."""
    if is_transposed(node):
        return node.args[0]
    return put(graph, _aten.transpose.int, (node, 1, 2), node.meta["val"].mT)


def turned_product(graph: Graph, product: Node) -> Node:
    """Returns (A B)ᵀ as Bᵀ Aᵀ, put in, for a node that is A B of stacked matrices."""
    first, second = product.args
    factors = (turned(graph, second), turned(graph, first))
    return put(graph, _aten.bmm.default, factors, product.meta["val"].mT)


def erase_unread(graph: Graph, nodes: Iterable[Any]) -> None:
    """Takes calls out that nothing reads, and what only they read."""
    left, gone = list(nodes), set[Node]()
    while left:
        node = left.pop()
        if isinstance(node, Node) and node.op == "call_function" and not node.users and node not in gone:
            left.extend(node.all_input_nodes)
            graph.erase_node(node)
            gone.add(node)
