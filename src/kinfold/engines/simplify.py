"""A recorded step of training in fewer and cheaper operations.

Those left out do nothing, those rearranged spare copies, and those put in the place of others are held to these by
tests. The products of small stacked layers are a few hundred microseconds long on a CPU, so that what stands around
them counts; and torch's max pooling takes as long there as the convolutions beside it, its softmax of few classes as
the product before it.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from kinfold.engines import products
from kinfold.engines.graphs import arguments, erase_unread, is_only_here, is_transposed, put, turned_product
from kinfold.engines.simplify_classes import simplify_classes
from kinfold.engines.simplify_images import simplify_images

_aten = torch.ops.aten
_IDENTITIES = frozenset({_aten.detach.default, _aten.alias.default})
_BINDINGS: dict[Any, Any] = {
    _aten.bmm.default: torch.bmm,
    _aten.mm.default: torch.mm,
    _aten.addmm.default: torch.addmm,
    _aten.t.default: torch.t,
    _aten.transpose.int: torch.transpose,
    _aten.unsqueeze.default: torch.unsqueeze,
    _aten.sum.dim_IntList: torch.sum,
    _aten.sum.default: torch.sum,
    _aten.mean.default: torch.mean,
    _aten.mean.dim: torch.mean,
    _aten.scatter_add.default: torch.scatter_add,
    _aten.add.Tensor: torch.add,
    _aten.mul.Tensor: torch.mul,
    _aten.div.Scalar: torch.div,
    _aten.neg.default: torch.neg,
    _aten.relu.default: torch.relu,
    _aten.relu_.default: torch.relu_,
    _aten.gather.default: torch.gather,
    _aten._log_softmax.default: torch._log_softmax,
    _aten._log_softmax_backward_data.default: torch._log_softmax_backward_data,
}
"""The same operations by a shorter way from Python."""

_PRODUCTS: dict[Any, Any] = {
    _aten.bmm.default: products.bmm,
    _aten.mm.default: products.mm,
    _aten.addmm.default: products.addmm,
}
"""Those that oneDNN is the faster for, on some processors."""

_METHODS = {
    _aten.view.default: "view",
    _aten._unsafe_view.default: "view",
    _aten.expand.default: "expand",
    _aten.add_.Tensor: "add_",
}
"""Those that are methods of tensors and no functions of torch's."""

_FILLED = frozenset(
    {
        _aten.ones_like.default,
        _aten.zeros_like.default,
        _aten.full_like.default,
        _aten.new_zeros.default,
        _aten.new_ones.default,
        _aten.new_full.default,
    }
)
"""Operations whose results hang on the form of a tensor, and not on its numbers."""

_LARGEST_CONSTANT = 2**18
"""Elements of a result that is kept and not computed at each step."""

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
    pure = not any(_writes(node) for node in graph.nodes)
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, Node):
            continue
        once = node.target is _aten.mul.Scalar and node.args[1] == 1 and _form(node) == _form(source)
        twice = _turns(node) and _turns(source)
        if _hands_on(node, source) or (pure and once) or twice:
            node.replace_all_uses_with(source.args[0] if twice else source)
            graph.erase_node(node)
            if twice and not source.users:
                graph.erase_node(source)
        elif is_transposed(node) and is_only_here(source, _aten.bmm.default):
            _transpose_factors(graph, node, source)
        elif node.target in _RESHAPES and is_only_here(source, _aten.sum.dim_IntList):
            _sum_without_axes(graph, node, source)
    simplify_classes(graph, pure)
    simplify_images(graph)
    if pure:
        _keep_constants(graph)
    overwritten: set[Node] = set()
    for node in list(graph.nodes):
        _overwrite(node, overwritten)
    for node in list(graph.nodes):
        if node.target is _aten.addmm.default and not _is_large_product(node):
            _take_as_layer(graph, node)
    for node in graph.nodes:
        if node.target in _PRODUCTS and _is_large_product(node):
            node.target = _PRODUCTS[node.target]
        elif node.target is _aten.bmm.default and _goes_in_parts(node):
            node.target = products.bmm_in_parts
        if node.target in _METHODS:
            node.op, node.target = "call_method", _METHODS[node.target]
            if node.target == "view" and pure:  # what is rearranged before it may lie otherwise than it did
                node.target = "reshape"
        node.target = _BINDINGS.get(node.target, node.target)


def _writes(node: Node) -> bool:
    """Whether an operation writes to what it is given, so that a copy is not the same as the thing itself."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _hands_on(node: Node, source: Node) -> bool:
    return node.target in _IDENTITIES or (node.target in _RESHAPES and _form(node) == _form(source))


def _keep_constants(graph: Graph) -> None:
    """Computes once what is the same at every step, such as the gradient of a mean with respect to its terms.

    What is handed out stays an operation, and what that is a view of: others may write to it.
    """
    handed_out: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or (node in handed_out and _is_view(node)):
            handed_out.update(node.all_input_nodes)
    module, constants = graph.owning_module, dict[Node, Tensor]()
    if module is None:
        return
    for node in graph.nodes:
        if _is_constant(node, constants) and node not in handed_out:
            given = node.args
            if node.target in _FILLED:
                like = node.args[0].meta["val"]
                form = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
                given = (form, *node.args[1:])
            constants[node] = node.target(*map_arg(given, constants.__getitem__), **node.kwargs)
    for number, (node, value) in enumerate(constants.items()):
        if not node.users.keys() <= constants.keys():
            name = f"constant_{number}"
            module.register_buffer(name, value, persistent=False)
            with graph.inserting_before(node):
                kept = graph.get_attr(name)
            kept.meta = dict(node.meta)
            node.replace_all_uses_with(kept, delete_user_cb=lambda user: user not in constants)
    unread = {source for node in constants for source in node.all_input_nodes} - constants.keys()
    for node in reversed(constants):
        graph.erase_node(node)
    for node in unread:
        if not node.users and node.target is _aten.sum.default:
            graph.erase_node(node)


def _is_view(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and (node.target.is_view or node.target in _RESHAPES)


def _is_constant(node: Node, constants: Collection[Node]) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    value = node.meta["val"]
    if not isinstance(value, Tensor) or value.numel() > _LARGEST_CONSTANT:
        return False
    if node.target in _FILLED:
        return True
    drawn = torch.Tag.nondeterministic_seeded in node.target.tags
    return bool(node.all_input_nodes) and not drawn and all(source in constants for source in node.all_input_nodes)


def _transpose_factors(graph: Graph, node: Node, product: Node) -> None:
    """Turns (A B)ᵀ into Bᵀ Aᵀ: so the gradient of a linear layer lies in memory as its weight does."""
    with graph.inserting_before(product):
        node.replace_all_uses_with(turned_product(graph, product))
    erase_unread(graph, [node])


def _sum_without_axes(graph: Graph, node: Node, total: Node) -> None:
    """Leaves out axes of one that a sum keeps, where they are taken away after it."""
    if total.kwargs or len(total.args) != 3 or not arguments(total)[1]:  # of no axes: all are summed
        return
    x, axes, _ = arguments(total)
    shape = x.meta["val"].shape
    gone = {axis % max(1, len(shape)) for axis in axes}
    if node.meta["val"].shape == torch.Size(size for axis, size in enumerate(shape) if axis not in gone):
        with graph.inserting_before(total):  # what is summed may be written to before it is looked at
            node.replace_all_uses_with(put(graph, total.target, (x, axes), node.meta["val"]))
        erase_unread(graph, [node])


def _turns(node: Node) -> bool:
    """Whether a node exchanges the two axes of a matrix, or of each of several."""
    return node.target is _aten.t.default or is_transposed(node)


def _overwrite(node: Node, overwritten: set[Node]) -> None:
    """Lets a cheap operation on a product of its own write over it, while that is still in the cache.

    Args:
        node: of the operation.
        overwritten: sums that were written over products; what the user's model writes to may have other names.
    """
    if node.target is _aten.add.Tensor and not node.kwargs:
        bias, product = node.args
        if is_only_here(product, _aten.bmm.default) and _form(node) == _form(product) and _lies_as(node, product):
            node.target, node.args = _aten.add_.Tensor, (product, bias)
            overwritten.add(node)
    elif node.target is _aten.relu.default:
        source = node.all_input_nodes[0]
        if len(source.users) == 1 and (source in overwritten or source.target is _aten.addmm.default):
            node.target = _aten.relu_.default
    elif node.target is _aten.threshold_backward.default:
        product = arguments(node)[0]
        of_its_own = is_only_here(product, _aten.bmm.default) or is_only_here(product, _aten.mm.default)
        if of_its_own and _lies_as(node, product):
            node.target, node.kwargs = _aten.threshold_backward.grad_input, {"grad_input": product}


def _take_as_layer(graph: Graph, node: Node) -> None:
    """Leaves the turning around of a layer's weight to the operation that takes it as it lies."""
    bias, x, turned = arguments(node)
    if is_only_here(turned, _aten.t.default) and bias.meta["val"].ndim == 1 and not node.kwargs:
        node.target, node.args = torch._C._nn.linear, (x, arguments(turned)[0], bias)
        graph.erase_node(turned)


def _is_large_product(node: Node) -> bool:
    """Whether matrices are such that oneDNN multiplies them faster than MKL."""
    *_, first, second = (part.meta["val"] for part in node.args if isinstance(part, Node))
    dense = all(map(_is_dense, (first, second)))  # others it would copy
    plain = _is_plain(first) and _is_plain(second) and not node.kwargs
    return plain and dense and products.is_faster(first.shape, second.shape)


def _goes_in_parts(node: Node) -> bool:
    """Whether stacked matrices are such that MKL is slow for them, and not for parts of them."""
    first, second = (part.meta["val"] for part in arguments(node))
    plain = _is_plain(first) and _is_plain(second) and first.is_contiguous() and second.mT.is_contiguous()
    return plain and products.is_faster_in_parts(first.shape, second.shape)


def _is_plain(value: Tensor) -> bool:
    return value.dtype == torch.float32 and value.device.type == "cpu"


def _is_dense(matrices: Tensor) -> bool:
    return matrices.is_contiguous() or matrices.mT.is_contiguous()


def _lies_as(node: Node, other: Node) -> bool:
    """Whether two results have the same order in memory, on which views after them may hang."""
    return bool(node.meta["val"].stride() == other.meta["val"].stride())


def _form(node: Node) -> tuple[torch.Size, torch.dtype]:
    value = node.meta["val"]
    return value.shape, value.dtype
