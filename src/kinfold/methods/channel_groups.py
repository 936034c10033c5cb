"""Channels that can be taken out of a network together, by the dependency graph of Torch-Pruning.

A group is what belongs to one channel: the rows of the layers that make it and of the norms behind them, those of all
layers that are added up with it included. If they are zero the channel is zero, and nothing else changes when it is
taken out (Chen et al., *Only Train Once*, NeurIPS 2021, "zero-invariant groups"; Fang et al., *DepGraph*, CVPR 2023).

Legend: G groups, O rows of a parameter, U units: sets of layers whose channels are coupled.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, final

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from kinfold.errors import InputError
from kinfold.methods.model import Rows

_EXACT = 1e-4


@final
@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """Which rows of which parameters belong together.

    Attributes:
        rows: by the parameter's name, [O] the group of each row, −1 for none.
        unit: [G] the unit of each group.
    """

    rows: dict[str, Int64[Tensor, " O"]]
    unit: Int64[Tensor, " G"]


def torch_pruning() -> ModuleType:
    """Returns Torch-Pruning.

    Raises:
        InputError: it cannot be imported.
    """
    try:
        import torch_pruning as package
    except ImportError as error:
        raise InputError(
            f"methods: hesso needs Torch-Pruning ({error}); install it by: pip install 'kinfold[pruning]'."
        ) from None
    return package  # type: ignore[no-any-return]


def channel_groups(module: nn.Module, x: Rows) -> ChannelGroups:
    """Returns the groups of all channels that can be taken out without changing anything else.

    A unit is left out where the dependency graph does not know all that is coupled, or where the outputs on `x` are
    others once channels that are zero have been taken out: the outputs' own layer, and layers behind which something
    (a sigmoid, layer norm, padded channels) makes more of zero than zero.

    Args:
        module: linear layers, convolutions and batch norms are known; it is left as it is.
        x: some rows.

    Raises:
        InputError: Torch-Pruning is not installed, or cannot follow the module.

    Example:
        >>> torch_pruning = __import__("pytest").importorskip("torch_pruning")
        >>> module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> groups = channel_groups(module, torch.ones(2, 4))
        >>> {name: rows.tolist() for name, rows in groups.rows.items()}, groups.unit.tolist()
        ({'0.weight': [0, 1, 2], '0.bias': [0, 1, 2]}, [0, 0, 0])
    """
    rows: dict[str, Int64[Tensor, " O"]] = {}
    units: list[int] = []
    for root, own, count in _units(module, x):
        if set(own) & set(rows) or not _zeros_can_go(module, root, own, count, x):
            continue
        base, unit = len(units), len(set(units))
        rows |= {name: torch.where(group >= 0, group + base, -1) for name, group in own.items()}
        units += [unit] * count
    return ChannelGroups(rows, torch.tensor(units, dtype=torch.int64))


def without_zero_channels(module: nn.Module, x: Rows, groups: ChannelGroups) -> nn.Module:
    """Takes out the channels whose rows are all zero, in place, and returns the module; a unit keeps one at least.

    Args:
        module: of which the groups are.
        x: some rows.
        groups: its groups, as they were before anything was taken out.

    Raises:
        InputError: Torch-Pruning is not installed, or cannot follow the module.
    """
    parameters = dict(module.named_parameters())
    zero = torch.ones(len(groups.unit), dtype=torch.bool)
    for name, group in groups.rows.items():
        full = (parameters[name].detach().flatten(1) if parameters[name].ndim > 1 else parameters[name][:, None]) != 0
        zero[group[(group >= 0) & full.any(1).cpu()]] = False
    for root, _, count in list(_units(module, x)):
        name = f"{root}.weight"
        if name not in groups.rows or int(groups.rows[name].min()) < 0:
            continue
        first = int(groups.rows[name].min())
        out = zero[first : first + count].nonzero().flatten().tolist()
        _take_out(module, root, out[1:] if len(out) == count else out, x)
    return module


def _take_out(module: nn.Module, root: str, channels: Sequence[int], x: Rows) -> None:
    if not channels:
        return
    graph = _graph(module, x)
    layer = module.get_submodule(root)
    graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, list(channels)).prune()


def _graph(module: nn.Module, x: Rows) -> Any:
    first = next(module.parameters())
    given = [part.to(first.device, first.dtype if part.is_floating_point() else None) for part in _parts(x)]
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    training = [(layer, layer.training) for layer in module.modules()]
    package = torch_pruning()
    try:
        module.eval()
        with torch.enable_grad():  # the graph is read off autograd's
            for parameter, _ in flags:
                parameter.requires_grad_()
            return package.DependencyGraph().build_dependency(
                module, example_inputs=tuple(given) if len(given) > 1 else given[0]
            )
    except Exception as error:  # whatever it meets in a module that it does not know
        text = str(error).partition("\n")[0]
        raise InputError(f"methods: Torch-Pruning cannot follow the model ({text}); leave hesso out.") from error
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for layer, mode in training:
            layer.training = mode


def _parts(x: Rows) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


def _units(module: nn.Module, x: Rows) -> Iterator[tuple[str, dict[str, Int64[Tensor, " O"]], int]]:
    """Yields (the root layer, the channel of each row of each parameter or −1, how many channels) of every unit."""
    graph = _graph(module, x)
    names = {layer: name for name, layer in module.named_modules()}
    trained = {name for name, _ in module.named_parameters()}
    for group in graph.get_all_groups(root_module_types=(nn.Linear, _ConvNd)):
        root = names[group[0].dep.target.module]
        own: dict[str, Int64[Tensor, " O"]] = {}
        known = True
        for item in group:
            layer, places = item.dep.target.module, item.idxs
            if layer not in names:  # an operation, which has no numbers
                known = known and not isinstance(layer, nn.Parameter)
                continue
            if not graph.is_out_channel_pruning_fn(item.dep.handler):
                continue
            known = known and isinstance(layer, (nn.Linear, _ConvNd, _BatchNorm))
            known = known and not (isinstance(layer, _ConvNd) and layer.transposed)
            for kind in ("weight", "bias"):
                name = f"{names[layer]}.{kind}"
                if not known or name not in trained or getattr(layer, kind, None) is None:
                    continue
                channels = own.setdefault(name, torch.full((len(getattr(layer, kind)),), -1))
                channels[torch.tensor([int(place) for place in places])] = torch.tensor(item.root_idxs)
        if known and f"{root}.weight" in own:
            yield root, own, len(own[f"{root}.weight"])


def _zeros_can_go(module: nn.Module, root: str, own: dict[str, Int64[Tensor, " O"]], count: int, x: Rows) -> bool:
    """Whether nothing changes when every other channel, being zero, is taken out."""
    if count < 2:
        return False
    zeroed = copy.deepcopy(module).eval()
    with torch.no_grad():
        for name, parameter in zeroed.named_parameters():
            if name in own:
                parameter[(own[name] >= 0) & (own[name] % 2 == 0)] = 0.0
    smaller = copy.deepcopy(zeroed)
    first = next(zeroed.parameters())
    given = [part.to(first.device, first.dtype if part.is_floating_point() else None) for part in _parts(x)]
    try:
        _take_out(smaller, root, range(0, count, 2), x)
        with torch.no_grad():
            before, after = zeroed(*given), smaller(*given)
    except (InputError, RuntimeError, ValueError, IndexError):
        return False
    return before.shape == after.shape and torch.allclose(
        before, after, rtol=0, atol=_EXACT * float(before.abs().max())
    )
