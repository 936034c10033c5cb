"""Muon for the matrices of a network, and AdamW for what is none: one optimizer, as a name that every network can take.

Jordan et al., *Muon: An optimizer for hidden layers in neural networks* (2024); the steps are `torch.optim.Muon`'s.
"""

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kinfold.errors import InputError


@final
class MuonWithAdamW(Optimizer):
    """Steps parameters of two axes by `torch.optim.Muon`, and all others by `torch.optim.AdamW`.

    Like torch's, it knows nothing of what a matrix is for: output layers and embeddings are matrices, too, and the
    weights of convolutions are none.

    Args:
        params: of one network.
        lr: of Muon.
        weight_decay: of both.
        momentum: of Muon.
        nesterov: likewise.
        ns_steps: of its Newton–Schulz iteration.
        adamw_lr: of AdamW; a schedule scales both.
        betas: of AdamW.

    Raises:
        InputError: the installed PyTorch has no Muon.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> optimizer = MuonWithAdamW(layer.parameters(), lr=0.02)
        >>> [(len(group["params"]), group["lr"]) for group in optimizer.param_groups]
        [(1, 0.02), (1, 0.001)]
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adamw_lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
    ):
        muon = vars(torch.optim).get("Muon")
        if muon is None:
            raise InputError(
                f"optimizer: muon needs PyTorch 2.9 or later, and {torch.__version__} is here; upgrade it."
            )
        given = list(params)
        matrices, others = ([p for p in given if is_matrix(p) == matrix] for matrix in (True, False))
        self._steppers: list[Optimizer] = []
        if matrices:
            options: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
            self._steppers.append(muon(matrices, lr=lr, weight_decay=weight_decay, **options))
        if others:
            self._steppers.append(torch.optim.AdamW(others, lr=adamw_lr, betas=betas, weight_decay=weight_decay))
        super().__init__([dict(stepper.param_groups[0]) for stepper in self._steppers], {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step of both; returns what the closure returns."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for stepper, group in zip(self._steppers, self.param_groups, strict=True):
            # Groups and state are this optimizer's own, which callers change and put back.
            stepper.param_groups, stepper.state = [group], self.state
            stepper.step()
        return value


def is_matrix(parameter: Tensor) -> bool:
    """Returns whether Muon steps a parameter."""
    return parameter.ndim == 2
