"""A recorded step of training in fewer operations: those left out do nothing, those rearranged spare copies.

The gains are those of stacked linear layers, whose products are a few hundred microseconds long on a CPU, so that what
stands around them counts.
"""

from typing import Any, TypeGuard

import torch
from torch.fx import Graph, Node

_aten = torch.ops.aten
_IDENTITIES = frozenset({_aten.detach.default, _aten.alias.default})
_RESHAPES = frozenset({_aten.view.default, _aten._unsafe_view.default, _aten.expand.default})


def simplify(graph: Graph) -> None:
    """Simplifies a graph that `make_fx` made of tensors, in place; results change by rounding alone.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> def product(a, b):
        ...     return torch.bmm(a.mT, b.view(2, 4, 5)).mT
        >>> graph = make_fx(product)(torch.ones(2, 4, 3), torch.ones(2, 4, 5)).graph
        >>> simplify(graph)
        >>> [node.name for node in graph.nodes if node.op == "call_function"]
        ['transpose_int', 'bmm_default']
    """
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, Node):
            continue
        if node.target in _IDENTITIES or (node.target in _RESHAPES and _form(node) == _form(source)):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        elif _is_transposed(node) and _is_only_here(source, _aten.bmm.default):
            _transpose_factors(graph, node, source)
    for node in list(graph.nodes):
        _overwrite(node)


def _transpose_factors(graph: Graph, node: Node, product: Node) -> None:
    """Turns (A B)ᵀ into Bᵀ Aᵀ: so the gradient of a linear layer lies in memory as its weight does."""
    first, second = product.args
    with graph.inserting_before(node):
        turned = graph.call_function(_aten.bmm.default, (_turned(graph, second), _turned(graph, first)))
    turned.meta = dict(node.meta)
    node.replace_all_uses_with(turned)
    for unread in (node, product, first, second):
        if isinstance(unread, Node) and unread.op == "call_function" and not unread.users:
            graph.erase_node(unread)


def _turned(graph: Graph, factor: Any) -> Any:
    if _is_transposed(factor):
        return factor.args[0]
    node = graph.call_function(_aten.transpose.int, (factor, 1, 2))
    node.meta["val"] = factor.meta["val"].transpose(1, 2)
    return node


def _overwrite(node: Node) -> None:
    """Lets a cheap operation on a product of its own write over it, while that is still in the cache."""
    if node.target is _aten.add.Tensor and not node.kwargs:
        bias, product = node.args
        if _is_only_here(product, _aten.bmm.default) and _form(node) == _form(product):
            node.target, node.args = _aten.add_.Tensor, (product, bias)
    elif node.target is _aten.relu.default and _is_only_here(node.args[0], _aten.add_.Tensor):
        node.target = _aten.relu_.default
    elif node.target is _aten.threshold_backward.default and _is_only_here(node.args[0], _aten.bmm.default):
        node.target, node.kwargs = _aten.threshold_backward.grad_input, {"grad_input": node.args[0]}


def _is_transposed(node: Any) -> TypeGuard[Node]:
    """Whether a node exchanges the last two of three axes."""
    if not (isinstance(node, Node) and node.target is _aten.transpose.int and node.meta["val"].ndim == 3):
        return False
    return {axis % 3 for axis in node.args[1:] if isinstance(axis, int)} == {1, 2}


def _is_only_here(node: Any, target: Any) -> TypeGuard[Node]:
    """Whether a node is the result of an operation, and one other node alone reads it."""
    return isinstance(node, Node) and node.target is target and len(node.users) == 1


def _form(node: Node) -> tuple[torch.Size, torch.dtype]:
    value = node.meta["val"]
    return value.shape, value.dtype
