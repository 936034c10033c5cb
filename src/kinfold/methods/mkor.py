"""MKOR: gradients preconditioned by Kronecker factors whose inverses are updated by rank-1 terms.

Mozaffari, Li, Zhang, Dehnavi, *MKOR: Momentum-Enabled Kronecker-Factor-Based Optimizer Using Rank-1 Updates*
(NeurIPS 2023), by the authors' published code. Legend: I inputs (and one for the bias) and O outputs of a layer.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kinfold.errors import InputError
from kinfold.methods.base import Context, Method, Params, State, ValueAndGrad, linear_layers, within

_LARGEST = 100.0  # statistics are clamped to it
_A, _G = "inverse_a/", "inverse_g/"


def sherman_morrison(inverse: Float[Tensor, "n n"], v: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
    """Returns (F + v vᵀ)⁻¹, given F⁻¹ of a symmetric F, in O(n²).

    Example:
        >>> sherman_morrison(torch.eye(2), torch.tensor([1.0, 0.0]))
        tensor([[0.5000, 0.0000],
                [0.0000, 1.0000]])
    """
    u = inverse @ v
    return inverse - torch.outer(u, u) / (1 + v @ u)


def updated_inverse(
    inverse: Float[Tensor, "n n"], v: Float[Tensor, " n"], decay: float | int = 0.95
) -> Float[Tensor, "n n"]:
    """Returns a factor's inverse after one more statistic: it decays towards the identity, then takes v vᵀ in.

    Args:
        inverse: F⁻¹.
        v: mean input, or mean gradient of the output.
        decay: of F⁻¹ to decay F⁻¹ + (1 − decay) 1.
    """
    eye = torch.eye(len(inverse), dtype=inverse.dtype, device=inverse.device)
    return sherman_morrison(decay * inverse + (1 - decay) * eye, v)


def preconditioned(
    weight: Float[Tensor, "O *inputs"],
    bias: Float[Tensor, " O"] | None,
    inverse_a: Float[Tensor, "I I"],
    inverse_g: Float[Tensor, "O O"],
) -> tuple[Float[Tensor, "O *inputs"], Float[Tensor, " O"] | None]:
    """Returns G⁻¹ ∇ A⁻¹ of a layer's gradients, as long as these were: by ‖∇W‖ + ‖∇b‖.

    Args:
        weight: ∇W.
        bias: ∇b, or None; the last row and column of A are its own.
        inverse_a: A⁻¹, of the inputs.
        inverse_g: G⁻¹, of the outputs' gradients.
    """
    flat = weight.flatten(1)
    both = inverse_g @ (flat if bias is None else torch.cat([flat, bias[:, None]], 1)) @ inverse_a
    new = [both] if bias is None else [both[:, :-1], both[:, -1]]
    old = [weight] if bias is None else [weight, bias]
    before, after = (torch.stack([part.square().sum().sqrt() for part in parts]).sum() for parts in (old, new))
    # Without a gradient there is no direction either.
    scale = torch.where(after > 0, before / torch.where(after > 0, after, 1.0), 0.0)
    return scale * new[0].reshape(weight.shape), None if bias is None else scale * new[1]


@final
@dataclass(frozen=True)
class MKOR(Method):
    """Gives the optimizer G⁻¹ ∇W A⁻¹ in place of ∇W, layer by layer, and as long as that was.

    A and G are averages of a aᵀ and g gᵀ, with a the batch's mean input of the layer (and 1 for the bias) and g the
    mean gradient of a row's loss with respect to its output. Their inverses are kept, never computed: every `every`
    steps they decay towards the identity and take the new statistic in (`updated_inverse`). Where an entry of one
    exceeds `largest`, both of the layer begin anew. All linear layers and ungrouped convolutions take part; other
    parameters keep their gradients.

    MKOR-H (`hybrid`) goes over to the plain gradient for good, once the mean loss of a window is no longer lower than
    that of the one before by a share of it.

    Attributes:
        every: steps between two updates of the inverses.
        decay: of the inverses, at such an update.
        largest: entry of an inverse from which a layer's begin anew.
        layers: names of the layers that take part; default all there are.
        hybrid: whether to fall back to the first order.
        window: batches of one window of losses.
        gain: the least share by which the loss of a window is to be lower.

    Example:
        >>> MKOR(hybrid=True).every
        10
    """

    conflicts: ClassVar[frozenset[str]] = frozenset({"DeepZero", "SAM"})  # both give gradients of their own

    every: int = 10
    decay: float | int = 0.95
    largest: float | int = 2.0
    layers: tuple[str, ...] | None = None
    hybrid: bool = False
    window: int = 100
    gain: float | int = 0.01

    def __post_init__(self) -> None:
        for argument, count in (("every", self.every), ("window", self.window)):
            if count < 1:
                raise InputError(f"mkor: {argument} is {count!r}; give 1 or more.")
        if not 0.0 <= self.decay < 1.0:
            raise InputError(f"mkor: decay is {self.decay!r}; give a number from 0 to below 1.")
        if not self.largest > 1.0:
            raise InputError(f"mkor: largest is {self.largest!r}; give a number above 1, the identity's entries.")
        if not 0.0 <= self.gain < 1.0:
            raise InputError(f"mkor: gain is {self.gain!r}; give a share from 0 to below 1.")

    def start(self, params: Params, context: Context) -> State:
        known = [name for name in linear_layers(context.module) if within(name, "weight") in params]
        chosen = known if self.layers is None else self.layers
        for name in chosen:
            if name not in known:
                raise InputError(
                    f"mkor: {name!r} is no linear layer or ungrouped convolution that is trained; the model has "
                    f"{', '.join(map(repr, known)) or 'none'}."
                )
        if not chosen:
            raise InputError("mkor: the model has no linear layer or convolution to precondition; leave mkor out.")
        like = next(iter(params.values()))
        state = {"steps": _count(like), "pending": like.new_zeros(())}
        for name in chosen:
            weight = params[within(name, "weight")]
            outputs, inputs = weight.shape[0], weight[0].numel() + (within(name, "bias") in params)
            for start, size in ((_A, inputs), (_G, outputs)):
                state[start + name] = torch.eye(size, dtype=weight.dtype, device=weight.device)
                state["mean_" + start + name] = weight.new_zeros(size)
                state["anew_" + start + name] = torch.ones((), dtype=torch.bool, device=weight.device)
        if self.hybrid:
            state["second_order"] = torch.ones((), dtype=torch.bool, device=like.device)
            state |= _new_window(like)
        return state

    def gradients(
        self, value_and_grad: ValueAndGrad, params: Params, state: State, key: Int64[Tensor, ""]
    ) -> tuple[Tensor, Params, State]:
        del key
        names = _layers(state)
        value, grads, met = value_and_grad.layers(params, names)
        pending = state["pending"] + 1
        new = {"pending": pending}
        for name in names:
            inputs = met[name].inputs
            if within(name, "bias") in params:
                inputs = torch.cat([inputs, inputs.new_ones(1)])
            for start, mean in ((_A, inputs), (_G, met[name].output_grads)):
                before = state["mean_" + start + name]  # of the batches that make one step
                new["mean_" + start + name] = before + (mean.clamp(-_LARGEST, _LARGEST) - before) / pending
        if self.hybrid:
            new |= watched(value.detach(), state, self.window, self.gain)
        return value, grads, new

    def before_step(self, params: Params, grads: Params, state: State) -> tuple[Params, State]:
        state, grads = dict(state), dict(grads)
        due = state["steps"] % self.every == 0
        for name in _layers(state):
            for start in (_A, _G):
                self._take_in(name, start, due, state)
            weight, bias = within(name, "weight"), within(name, "bias")
            if weight not in grads:  # the loss does not reach it
                continue
            given = None if bias not in params else grads.get(bias, torch.zeros_like(params[bias]))
            new_weight, new_bias = preconditioned(grads[weight], given, state[_A + name], state[_G + name])
            grads[weight] = self._chosen(new_weight, grads[weight], state)
            if new_bias is not None and bias in grads:
                grads[bias] = self._chosen(new_bias, grads[bias], state)
        return grads, state | {"steps": state["steps"] + 1, "pending": torch.zeros_like(state["pending"])}

    def after_transfer(self, params: Params, state: State) -> tuple[Params, State]:
        # The factors go with the donor's parameters; losses of another network say nothing of this one's.
        return params, state | (_new_window(next(iter(params.values()))) if self.hybrid else {})

    def _take_in(self, name: str, start: str, due: Bool[Tensor, ""], state: State) -> None:
        """Updates one inverse of a layer in the state, if it is time, or begins anew."""
        inverse, anew = state[start + name], state["anew_" + start + name]
        eye = torch.eye(len(inverse), dtype=inverse.dtype, device=inverse.device)
        new = torch.where(anew, eye, updated_inverse(inverse, state["mean_" + start + name], self.decay))
        state[start + name] = torch.where(due, new, inverse)
        state["anew_" + start + name] = anew & ~due
        beyond = due & (new.abs().amax() > self.largest)
        for either in (_A, _G):
            state["anew_" + either + name] = state["anew_" + either + name] | beyond

    def _chosen(self, second: Tensor, first: Tensor, state: State) -> Tensor:
        return torch.where(state["second_order"], second, first) if self.hybrid else second


def watched(loss: Float[Tensor, ""], state: State, window: int, gain: float | int) -> State:
    """Returns the state of MKOR-H's switch after one more batch: whether the second order still pays.

    Args:
        loss: of the batch.
        state: `second_order`; `loss_sum` of the window, `seen` batches of it; `loss_before`, mean of the one before.
        window: batches.
        gain: the least share by which the mean is to be lower than before.
    """
    total, seen = state["loss_sum"] + loss.to(state["loss_sum"].dtype), state["seen"] + 1
    full, mean, before = seen >= window, total / window, state["loss_before"]
    pays = mean <= before - gain * before.abs().nan_to_num(posinf=0.0)
    return {
        "second_order": state["second_order"] & (pays | ~full),
        "loss_sum": torch.where(full, 0.0, total),
        "loss_before": torch.where(full, mean, before),
        "seen": torch.where(full, 0, seen),
    }


def _new_window(like: Tensor) -> State:
    return {"loss_sum": like.new_zeros(()), "loss_before": torch.full_like(like.new_zeros(()), torch.inf)} | {
        "seen": _count(like)
    }


def _count(like: Tensor) -> Int64[Tensor, ""]:
    return torch.zeros((), dtype=torch.int64, device=like.device)


def _layers(state: State) -> list[str]:
    return [name.removeprefix(_A) for name in state if name.startswith(_A)]
