"""Classification's last layer and loss in a recorded step, in forms that suit a CPU better than torch's.

Softmax over the last axis of memory goes row by row; of fewer classes than fill a vector most of it is empty. Stacked
models take their last product the other way around, Bᵀ Aᵀ, so that its columns are rows of the batch, and all that
follows stays so up to the gradient's products, which read either way. What is another model's is only turned around
before and after softmax. For what shapes was measured on one processor (benchmarks/speed/forms.md), and holds on
another but for few rows by two threads (benchmarks/speed/intel/forms.md).

Legend: T tasks, B rows of a batch, C classes.
"""

import torch
from torch.fx import Graph, Node

from kinfold.engines.few_classes import log_softmax, log_softmax_backward
from kinfold.engines.graphs import arguments, erase_unread, is_only_here, is_transposed, put, turned, turned_product

_aten = torch.ops.aten

_VECTOR = 64
"""Bytes that a CPU works on at once."""

_MEAN, _NOTHING = 1, -100
"""What torch calls the mean of a loss over rows, and a class that none of them has."""

_MANY_ROWS = 256
"""From so many rows on, turning them around pays."""

_FEWEST = 5
"""Classes from which on it pays to copy them for it."""


def simplify_classes(graph: Graph, pure: bool) -> None:
    """Puts faster forms in the place of softmax of few classes in a graph that `make_fx` made.

    Args:
        graph: is changed in place.
        pure: whether no operation writes to what it is given.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> graph = make_fx(lambda x: torch.log_softmax(x, 1))(torch.ones(256, 5)).graph
        >>> simplify_classes(graph, pure=True)
        >>> any(node.target is log_softmax for node in graph.nodes)
        True
    """
    for node in list(graph.nodes):
        if node.target is _aten._log_softmax.default and _goes_by_rows(node):
            if pure and _can_be_turned(node):
                _turn(graph, node)
            elif node.meta["val"].shape[-1] >= _FEWEST:
                _take_by_rows(node)
        elif node.target is _aten.neg.default:
            _take_mean_at_once(graph, node)


def _take_mean_at_once(graph: Graph, loss: Node) -> None:
    """Puts one operation in the place of three where a loss is the mean over one model's rows, of a class of each."""
    mean = arguments(loss)[0]
    if not (is_only_here(mean, _aten.mean.default) and not mean.kwargs and len(mean.args) == 1):
        return
    picked = arguments(mean)[0]
    if not (is_only_here(picked, _aten.gather.default) and picked.args[1] in (1, -1) and len(picked.args) == 3):
        return
    logs, _, index = arguments(picked)
    value, rows = logs.meta["val"], logs.meta["val"].shape[0]
    of_rows = index.target is _aten.unsqueeze.default and index.args[1:] in ((1,), (-1,)) and value.ndim == 2
    if of_rows and picked.meta["val"].shape == (rows, 1) and value.device.type == "cpu":
        with graph.inserting_before(loss):
            given = (logs, arguments(index)[0], None, _MEAN, _NOTHING)
            loss.replace_all_uses_with(put(graph, torch._C._nn.nll_loss_nd, given, loss.meta["val"]))
        erase_unread(graph, [loss])


def _goes_by_rows(node: Node) -> bool:
    """Whether a softmax is of many rows of few classes that lie side by side."""
    x, *form = arguments(node)
    value, last = x.meta["val"], x.meta["val"].ndim - 1
    few = last > 0 and value.shape[-1] * value.element_size() < _VECTOR and value.shape[:-1].numel() >= _MANY_ROWS
    if not (few and form in ([last, False], [-1, False]) and not node.kwargs):
        return False
    same_kind: bool = node.meta["val"].dtype == value.dtype
    return same_kind and value.device.type == "cpu" and value.is_contiguous()


def _take_by_rows(node: Node) -> None:
    node.target, node.args = log_softmax, node.args[:1]
    for user in list(node.users):
        if _is_gradient(user, node):
            user.target, user.args = log_softmax_backward, user.args[:2]


def _is_gradient(user: Node, logs: Node) -> bool:
    return user.target is _aten._log_softmax_backward_data.default and user.args[1] is logs


def _is_picked(user: Node, logs: Node) -> bool:
    """Whether an operation takes the logarithm of one class of every row."""
    picks = user.target is _aten.gather.default and user.args[:2] in ((logs, 2), (logs, -1)) and len(user.args) == 3
    return picks and user.meta["val"].shape[-1] == 1


def _can_be_turned(logs: Node) -> bool:
    """Whether scores [T, B, C] are a product of this step's own, and all that comes of them is known."""
    scores = arguments(logs)[0]
    biased = scores.target is _aten.add.Tensor and not scores.kwargs
    bias, product = scores.args if biased else (None, scores)
    if not is_only_here(product, _aten.bmm.default) or len(scores.users) > 1:
        return False
    if biased and not (isinstance(bias, Node) and "val" in bias.meta and bias.meta["val"].ndim == 3):
        return False
    gradients = [user for user in logs.users if _is_gradient(user, logs)]
    known = all(_is_picked(user, logs) for user in logs.users if user not in gradients)
    return known and all(_is_read_either_way(user) for gradient in gradients for user in gradient.users)


def _is_read_either_way(user: Node) -> bool:
    """Whether an operation on a gradient [T, B, C] has a counterpart on [T, C, B]."""
    sums_rows = user.target is _aten.sum.dim_IntList and arguments(user)[1:] == ([1],) and not user.kwargs
    return user.target is _aten.bmm.default or sums_rows or is_transposed(user)


def _turn(graph: Graph, logs: Node) -> None:
    """Puts [T, C, B] in the place of [T, B, C], from the last product to the gradient's first ones."""
    scores, indices = arguments(logs)[0], dict[Node, Node]()
    users = [node for node in graph.nodes if node in logs.users]  # in the order of the graph
    with graph.inserting_before(logs):
        if scores.target is _aten.bmm.default:
            turned_scores = turned_product(graph, scores)
        else:
            bias, product = scores.args
            terms = (turned(graph, bias), turned_product(graph, product))
            turned_scores = put(graph, _aten.add.Tensor, terms, scores.meta["val"].mT)
        turned_logs = put(graph, logs.target, (turned_scores, 1, False), logs.meta["val"].mT)
    read = list[Node]()
    for user in users:
        value = user.meta["val"].mT
        with graph.inserting_before(user):
            if _is_gradient(user, logs):
                grad, _, _, kind = arguments(user)
                given = (_turned_grad(graph, grad, indices), turned_logs, 1, kind)
                read += _hand_on_gradient(graph, user, put(graph, user.target, given, value))
            else:
                picked = (turned_logs, 1, _turned_index(graph, arguments(user)[2], indices))
                _hand_on_picked(graph, user, put(graph, user.target, picked, value))
    erase_unread(graph, [*read, *users, logs])


def _turned_grad(graph: Graph, grad: Node, indices: dict[Node, Node]) -> Node:
    """The gradient with respect to the logarithms; that of picked classes is scattered where it is wanted."""
    if grad.target is not _aten.scatter_add.default or grad.args[1] not in (2, -1):
        return _side_by_side(graph, grad)
    into, _, index, terms = arguments(grad)
    index = _turned_index(graph, index, indices)
    given = (_side_by_side(graph, into), 1, index, _side_by_side(graph, terms))
    return put(graph, grad.target, given, grad.meta["val"].mT)


def _turned_index(graph: Graph, index: Node, indices: dict[Node, Node]) -> Node:
    if index not in indices:
        indices[index] = turned(graph, index)
    return indices[index]


def _side_by_side(graph: Graph, node: Node) -> Node:
    """A node's result turned around in memory; that of a constant will be a constant (see `simplify`)."""
    value = node.meta["val"].mT.contiguous()
    return put(graph, _aten.clone.default, (turned(graph, node),), value, memory_format=torch.contiguous_format)


def _hand_on_gradient(graph: Graph, node: Node, grad: Node) -> list[Node]:
    """Gives those that read [T, B, C] what is [T, C, B]; returns those whose own results are put in anew."""
    anew = []
    for user in list(node.users):
        with graph.inserting_before(user):
            if user.target is _aten.sum.dim_IntList:
                user.replace_all_uses_with(put(graph, user.target, (grad, [2]), user.meta["val"]))
                anew.append(user)
            elif is_transposed(user):
                user.replace_all_uses_with(grad)
                anew.append(user)
            else:
                user.replace_input_with(node, turned(graph, grad))
    return anew


def _hand_on_picked(graph: Graph, node: Node, picked: Node) -> None:
    """Gives those that read [T, B, 1] what is [T, 1, B]; a mean or a sum of all of it does not care."""
    for user in list(node.users):
        of_all = user.target in (_aten.mean.dim, _aten.sum.dim_IntList) and user.args[1:] == ([1, 2],)
        with graph.inserting_before(user):
            user.replace_input_with(node, picked if of_all else turned(graph, picked))
