"""Networks that a method holds and nobody trains: teachers and guides."""

import copy
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from kinfold import random
from kinfold.methods.base import Rows
from kinfold.methods.model import Model


@final
class FrozenNetwork(nn.Module):
    """A network in evaluation mode whose parameters are constants, on whatever device and precision it is called.

    It is one copy for all tasks, and belongs to the method and not to its state: no checkpoint holds it, so a run is
    resumed with the same one.

    Args:
        network: a module, which is copied; or a factory, whose draws come from the seed.
        seed: of an untrained network.

    Example:
        >>> teacher = FrozenNetwork(nn.Sequential(nn.Linear(2, 3), nn.Tanh()))
        >>> output, inside = teacher.tapped(torch.ones(4, 2, dtype=torch.float64), ["0"])
        >>> output.dtype, inside["0"].shape, output.requires_grad
        (torch.float64, torch.Size([4, 3]), False)
    """

    def __init__(self, network: nn.Module | Callable[[], nn.Module], seed: int = 0):
        super().__init__()
        if not isinstance(network, nn.Module):
            with random.seeded_everywhere(seed, "frozen network"):
                network = network()
        self.network = copy.deepcopy(network).cpu().eval().requires_grad_(False)
        self._copies: dict[tuple[torch.device, torch.dtype], Model] = {}

    def forward(self, *x: Tensor) -> Tensor:
        """Returns the network's output."""
        return self._on(x)(x)

    def tapped(self, x: Rows, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns (output, what the named layers gave)."""
        x = x if isinstance(x, tuple) else (x,)
        return self._on(x).tapped(x, names)

    def _on(self, x: tuple[Tensor, ...]) -> Model:
        dtypes = [part.dtype for part in x if part.is_floating_point()] or [torch.float32]
        where = x[0].device, dtypes[0]
        if where not in self._copies:
            self._copies[where] = Model.of(copy.deepcopy(self.network).to(*where)).evaluating()
        return self._copies[where]
