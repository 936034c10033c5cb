"""The same steps in JAX: `value_and_grad` and SGD with momentum by hand, gathers included, all under `jit`.

Networks are functions of {name: array} under PyTorch's names, so that they start from the same numbers. Of batch
norms the running statistics are kept, as PyTorch keeps them. `together` lifts the step over tasks by `vmap`;
otherwise the step of one model is called for one after another. Steps of a block go through `lax.scan`.

Legend: T tasks, K steps of a block, B batch, C channels, L steps of a series, H width.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias, final

import jax
import jax.numpy as jnp
import numpy as np
import torch
from contestants import CannotRunError, Contestant
from jax import lax
from torch import Tensor
from work import MOMENTUM, RATE, Work

from kinfold.tasks.state import stack_models

Arrays: TypeAlias = Mapping[str, jax.Array]
Network: TypeAlias = Callable[[Arrays, Arrays, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""(parameters, buffers, batch) → (logits, buffers after the pass)."""


def linear(p: Arrays, name: str, x: jax.Array) -> jax.Array:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def convolve(p: Arrays, name: str, x: jax.Array, padding: int, stride: int = 1) -> jax.Array:
    return lax.conv_general_dilated(x, p[f"{name}.weight"], (stride, stride), [(padding, padding)] * 2)


def halve(x: jax.Array) -> jax.Array:
    """Max pooling of 2×2, as a maximum over axes: its gradient compiles to less than that of a window's."""
    B, C, height, width = x.shape
    return x.reshape(B, C, height // 2, 2, width // 2, 2).max((3, 5))


def mlp(p: Arrays, buffers: Arrays, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    x = jax.nn.relu(linear(p, "1", x.reshape(len(x), -1)))
    x = jax.nn.relu(linear(p, "3", x))
    return linear(p, "5", x), dict(buffers)


def lenet5(p: Arrays, buffers: Arrays, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    for name, padding in (("features.0", 2), ("features.3", 0)):
        x = halve(jax.nn.relu(convolve(p, name, x, padding) + p[f"{name}.bias"][:, None, None]))
    x = x.reshape(len(x), -1)
    for name in ("classifier.1", "classifier.3"):
        x = jax.nn.relu(linear(p, name, x))
    return linear(p, "classifier.5", x), dict(buffers)


def resnet20(p: Arrays, buffers: Arrays, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    after = dict(buffers)

    def norm(name: str, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        mean, variance = wide.mean((0, 2, 3)), wide.var((0, 2, 3))
        count = x.size // x.shape[1]
        for key, value in (("mean", mean), ("var", variance * count / (count - 1))):
            full = f"{name}.running_{key}"
            after[full] = 0.9 * buffers[full] + 0.1 * lax.stop_gradient(value)
        scale = p[f"{name}.weight"] * lax.rsqrt(variance + 1e-5)
        shift = p[f"{name}.bias"] - mean * scale
        return (wide * scale[:, None, None] + shift[:, None, None]).astype(x.dtype)

    x = jax.nn.relu(norm("stem.1", convolve(p, "stem.0", x, 1)))
    for stage in range(3):
        for block in range(3):
            name, stride = f"stages.{stage}.{block}.residual", 2 if stage > 0 and block == 0 else 1
            short = x[:, :, ::stride, ::stride]
            x = jax.nn.relu(norm(f"{name}.1", convolve(p, f"{name}.0", x, 1, stride)))
            x = norm(f"{name}.4", convolve(p, f"{name}.3", x, 1))
            half = (x.shape[1] - short.shape[1]) // 2
            x = jax.nn.relu(x + jnp.pad(short, ((0, 0), (half, half), (0, 0), (0, 0))))
    return linear(p, "classifier", x.mean((2, 3))), after


def lstm(p: Arrays, buffers: Arrays, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    bias = p["cell.bias_ih_l0"] + p["cell.bias_hh_l0"]
    inputs_LBG = x.transpose(2, 0, 1) @ p["cell.weight_ih_l0"].T + bias
    recurrent = p["cell.weight_hh_l0"].T

    def step(state: tuple[jax.Array, jax.Array], given: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        h, c = state
        i, f, g, o = jnp.split(given + h @ recurrent, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((len(x), recurrent.shape[0]), x.dtype)
    _, states_LBH = lax.scan(step, (zeros, zeros), inputs_LBG)
    return linear(p, "classifier.1", states_LBH.mean(0)), dict(buffers)


NETWORKS: dict[str, Network] = {"mlp": mlp, "lenet5": lenet5, "resnet20": resnet20, "lstm": lstm}
Carry: TypeAlias = tuple[dict[str, jax.Array], dict[str, jax.Array], dict[str, jax.Array]]
"""(parameters, momentum, buffers) of one model."""


def step_of_one(
    network: Network, dtype: Any, X: jax.Array, y: jax.Array, carry: Carry, index: jax.Array
) -> tuple[Carry, jax.Array]:
    """One model's training step on the rows at `index`."""
    params, momentum, buffers = carry

    def loss(at: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        given = {name: value.astype(dtype) for name, value in at.items()}
        logits, after = network(given, buffers, X[index].astype(dtype))
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        return -jnp.take_along_axis(log_p, y[index][:, None], 1).mean(), after

    (value, buffers), grads = jax.value_and_grad(loss, has_aux=True)(params)
    momentum = {name: MOMENTUM * momentum[name] + grad for name, grad in grads.items()}
    params = {name: value - RATE * momentum[name] for name, value in params.items()}
    return (params, momentum, buffers), value


@final
class Jax(Contestant):
    """JAX on the work's device.

    Args:
        work: what to train.
        together: whether one program steps all models, or the same program one after another.

    Raises:
        CannotRunError: JAX has no such device.
    """

    def __init__(self, work: Work, together: bool):
        kind = "gpu" if work.job.device.type == "cuda" else "cpu"
        try:
            self._device = jax.devices(kind)[0]
        except RuntimeError as error:
            raise CannotRunError(f"JAX has no {kind} here") from error
        self._together, self._done = together, 0
        dtype = jnp.bfloat16 if work.job.precision == "bf16" else jnp.float32
        step = partial(step_of_one, NETWORKS[work.model], dtype)

        def block(X: jax.Array, y: jax.Array, carry: Carry, index: jax.Array) -> tuple[Carry, jax.Array]:
            one = partial(step, X, y)
            return lax.scan(jax.vmap(one) if together else one, carry, index)

        self._block = jax.jit(block, donate_argnums=2)
        self._X, self._y = self._array(work.inputs), self._array(work.targets.to(torch.int32))
        self._batches = work.batches.cpu().numpy().astype(np.int32)
        stack = stack_models(work.starts(), work.tasks, torch.device("cpu"), torch.float32)
        params = {name: self._array(value) for name, value in stack.params.items()}
        buffers = {n: self._array(value) for n, value in stack.buffers.items() if value.is_floating_point()}
        whole: Carry = (params, jax.tree.map(jnp.zeros_like, params), buffers)
        self._carries = [whole] if together else [self._row(whole, t) for t in range(work.tasks)]

    def run(self, steps: int) -> None:
        which = np.arange(self._done, self._done + steps) % len(self._batches)
        index_KTB = self._batches[which]
        for i, carry in enumerate(self._carries):
            index = jax.device_put(index_KTB if self._together else index_KTB[:, i], self._device)
            self._carries[i], _ = self._block(self._X, self._y, carry, index)
        jax.block_until_ready(self._carries)
        self._done += steps

    def parameters(self) -> dict[str, Tensor]:
        rows = [{name: np.array(value) for name, value in carry[0].items()} for carry in self._carries]
        if self._together:
            return {name: torch.from_numpy(value) for name, value in rows[0].items()}
        return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}

    def _array(self, value: Tensor) -> jax.Array:
        return jax.device_put(value.detach().cpu().numpy(), self._device)

    @staticmethod
    def _row(whole: Carry, t: int) -> Carry:
        row: Carry = jax.tree.map(lambda value: value[t], whole)
        return row
