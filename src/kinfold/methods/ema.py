"""The exponential average of the parameters (Polyak and Juditsky, *Acceleration of Stochastic Approximation*, 1992)."""

from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from kinfold.errors import InputError
from kinfold.methods.base import Context, Method, Params, State


@final
@dataclass(frozen=True)
class EMA(Method):
    """The task trains as it would, and what is scored and kept is the exponential average of its parameters.

    a ← d a + (1 − d) θ after every step, with d = min(decay, (1 + k) / (10 + k)) at step k. Batch-norm statistics are
    those of the task, not of its average; the candidate `ema` (see `kinfold.candidates`) measures them anew, and stands
    beside the tasks' own models instead of in their place.

    Attributes:
        decay: d, at most.

    Example:
        >>> EMA(decay=0.9).decay
        0.9
    """

    substitutes: ClassVar[bool] = True

    decay: float | int = 0.99

    def __post_init__(self) -> None:
        check_decay("ema", self.decay)

    def start(self, params: Params, context: Context) -> State:
        del context
        return start_average(params)

    def after_step(self, params: Params, state: State) -> tuple[Params, State]:
        return params, exponential_step(params, state, self.decay)

    def evaluation(self, params: Params, state: State) -> Params:
        return {name: state[f"average/{name}"] for name in params}


def check_decay(name: str, decay: float | int) -> None:
    """Checks the decay of an exponential average.

    Raises:
        InputError: it is none.
    """
    if not 0.0 <= decay < 1.0:
        raise InputError(f"{name}: decay is {decay!r}; give a number from 0 to below 1.")


def start_average(params: Params) -> State:
    """Returns the state of an exponential average that begins at the parameters."""
    count = next(iter(params.values())).new_zeros(())
    return {"count": count, **{f"average/{name}": value.clone() for name, value in params.items()}}


def exponential_step(params: Params, state: State, decay: float | int) -> State:
    """Returns the average after one more step; d rises to `decay` as in TensorFlow's `ExponentialMovingAverage`."""
    count = state["count"] + 1
    share = 1 - ((1 + count) / (10 + count)).clamp_max(decay)
    return {"count": count, **towards(params, state, share)}


def towards(params: Params, state: State, share: Float[Tensor, ""]) -> Params:
    """Returns the averages, moved towards the parameters by a share of the way."""
    averages = {name: state[f"average/{name}"] for name in params}
    return {
        f"average/{name}": average + share.to(average.dtype) * (params[name] - average)
        for name, average in averages.items()
    }
