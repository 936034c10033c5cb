"""Convolutions and pooling of a recorded step, in forms that suit a CPU better than torch's.

Torch's max pooling takes as long there as the convolutions beside it, and these leave vectors empty where there are few
channels. The forms are held to torch's by tests; what shapes they are taken for was measured on one processor
(benchmarks/speed/forms.md).
"""

import operator
from typing import TypeGuard

import torch
from torch import Tensor
from torch.fx import Graph, Node

from kinfold.engines.convolving import convolve_and_pool, convolve_and_pool_backward, convolve_backward
from kinfold.engines.graphs import arguments
from kinfold.engines.pooling import max_pool, max_pool_backward

_aten = torch.ops.aten

_PLAIN = ([1, 1], False, [0, 0], 1)
"""Dilation, whether transposed, padding of the results and groups of an ordinary convolution."""

_FEW_INPUTS = 3
"""Channels, such as of pictures, that are few enough to take four times the results for less pooling."""

_LARGE = 8 * 2**20
"""Bytes of a convolution's results from which on four times the channels fall out of a CPU's caches."""

_PARTLY_FILLED = 16
"""Channels from which on oneDNN's own gradient of a weight is the faster."""

_WIDE = 5
"""Height and width of a kernel from which on a convolution of many images for each channel is the faster."""

_MOST_IMAGES = 512
"""Images in a batch up to which it was seen to be."""


def simplify_images(graph: Graph) -> None:
    """Puts faster forms in the place of convolutions and pooling in a graph that `make_fx` made, where there are some.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> graph = make_fx(lambda x: torch.nn.functional.max_pool2d(x, 2))(torch.ones(1, 1, 2, 2)).graph
        >>> simplify_images(graph)
        >>> any(node.target is max_pool for node in graph.nodes)
        True
    """
    for node in list(graph.nodes):
        if node.target is _aten.max_pool2d_with_indices.default:
            _pool_by_rows(graph, node, arguments(node)[0])
    for node in list(graph.nodes):
        if node.target is max_pool:
            _pool_before_rectifying(graph, node)
    for node in list(graph.nodes):
        if node.target is max_pool and _convolves_plainly(node.args[0]):
            _convolve_for_pooling(graph, node, node.args[0])
    for node in graph.nodes:
        if node.target is _aten.convolution_backward.default:
            _take_batch_for_channels(node)


def _pool_by_rows(graph: Graph, node: Node, x: Node) -> None:
    """Puts a faster form in the place of max pooling of 2×2, where the memory is what that form is for."""
    value, indices = x.meta["val"], [user for user in node.users if user.args[1] == 1]
    backward = [user for index in indices for user in index.users]
    even = value.ndim == 4 and value.shape[2] % 2 == 0 and value.shape[3] % 2 == 0
    known = all(user.target is _aten.max_pool2d_with_indices_backward.default for user in backward)
    kernel, *given = node.args[1:]
    stride, *rest = given or [[]]
    halves = kernel == [2, 2] and stride in ([], [2, 2]) and rest == [[0, 0], [1, 1], False][: len(rest)]
    if not (known and even and halves and not node.kwargs):
        return
    if value.device.type != "cpu" or not value.is_contiguous():
        return
    node.target, node.args = max_pool, (x,)
    for user in backward:
        with graph.inserting_before(user):
            pairs = graph.call_function(operator.getitem, (node, 1))
        user.target, user.args = max_pool_backward, (user.args[0], x, pairs)
    for index in indices:
        graph.erase_node(index)


def _pool_before_rectifying(graph: Graph, pool: Node) -> None:
    """Rectifies what max pooling leaves, a quarter as many numbers; and so on the way back."""
    rectified = pool.args[0]
    if not (isinstance(rectified, Node) and rectified.target is _aten.relu.default):
        return
    back = [user for user in rectified.users if user.target is max_pool_backward]
    masks = [user for one in back for user in one.users]
    if rectified.users.keys() != {pool, *back, *masks} or len(back) > 1 or len(masks) != len(back):
        return
    if any(mask.target is not _aten.threshold_backward.default or mask.args != (*back, rectified, 0) for mask in masks):
        return
    (x,) = rectified.args
    maxima = next(user for user in pool.users if user.args[1] == 0)
    with graph.inserting_after(maxima):
        positive = graph.call_function(_aten.relu_.default, (maxima,))
    positive.meta = dict(maxima.meta)
    maxima.replace_all_uses_with(positive, delete_user_cb=lambda user: user is not positive)
    pool.args = (x,)
    for one, mask in zip(back, masks, strict=True):
        grad, _, pairs = one.args
        with graph.inserting_before(one):
            masked = graph.call_function(_aten.threshold_backward.default, (grad, positive, 0))
        masked.meta = dict(maxima.meta)
        one.args = (masked, x, pairs)
        mask.replace_all_uses_with(one)
        graph.erase_node(mask)
    graph.erase_node(rectified)


def _convolve_for_pooling(graph: Graph, pool: Node, convolution: Node) -> None:
    """Makes a convolution of data and the pooling after it one convolution of four times the channels."""
    x, weight, bias, _, padding, *_ = arguments(convolution)
    back = [user for user in convolution.users if user is not pool]
    ends = [user for one in back for user in one.users]
    if x.meta["val"].shape[1] > _FEW_INPUTS or convolution.meta["val"].nbytes >= _LARGE:
        return
    if any(one.target is not max_pool_backward for one in back):
        return
    if len(ends) != len(back) or any(end.target is not _aten.convolution_backward.default for end in ends):
        return
    if any(end.args[:3] != (*back, x, weight) or arguments(end)[-1][:2] != [False, True] for end in ends):
        return
    pool.target, pool.args = convolve_and_pool, (x, weight, bias, padding)
    for one, end in zip(back, ends, strict=True):
        grad, _, pairs = arguments(one)
        pairs.args = (pool, 2)
        with graph.inserting_before(one):
            candidates = graph.call_function(operator.getitem, (pool, 1))
        end.target, end.args = convolve_and_pool_backward, (grad, x, weight, candidates, pairs, padding)
        graph.erase_node(one)
    graph.erase_node(convolution)


def _take_batch_for_channels(node: Node) -> None:
    """Puts a faster form in the place of a convolution's backward pass, where images fill vectors and channels not."""
    grad, x, weight, _, *form, mask = arguments(node)
    images, channels, *_ = x.meta["val"].shape
    if form != [[1, 1], [0, 0], *_PLAIN] or mask[:2] != [True, True] or not _is_plain(x) or not _is_plain(grad):
        return
    if channels < _PARTLY_FILLED and images <= _MOST_IMAGES and min(weight.meta["val"].shape[2:]) >= _WIDE:
        node.target, node.args = convolve_backward, (grad, x, weight)


def _convolves_plainly(node: object) -> TypeGuard[Node]:
    """Whether a node is a convolution over height and width, of stride 1 and in one group."""
    if not (isinstance(node, Node) and node.target is _aten.convolution.default):
        return False
    x, _, _, stride, _, *form = arguments(node)
    return stride == [1, 1] and form == list(_PLAIN) and _is_plain(x)


def _is_plain(node: Node) -> bool:
    """Whether a node gives images of ordinary numbers, in contiguous memory of a CPU."""
    value: Tensor = node.meta["val"]
    return value.ndim == 4 and value.dtype == torch.float32 and value.device.type == "cpu" and value.is_contiguous()
