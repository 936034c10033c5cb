"""A step of SGD, Adam or AdamW by torch's one kernel for all parameters, without what stands around the kernel.

At every step `torch.optim` looks at each parameter, sorts them by device and kind and opens a range of the profiler.
For a small network on a CPU all that takes several times as long as the kernel.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor, nn
from torch.optim import Optimizer

ONE_KERNEL: frozenset[type[Optimizer]] = frozenset({torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW})
"""Optimizers that torch can run as one kernel, which reads and writes every number once."""

Kernel: TypeAlias = Callable[[Sequence[Tensor]], None]
"""Takes a step of an optimizer, with the gradients of its parameters."""


def step_by_kernel(optimizer: Optimizer, grads: Mapping[nn.Parameter, Tensor], factor: float = 1.0) -> bool:
    """Takes the step that `optimizer.step()` would take, bit for bit, or does nothing; returns whether.

    Args:
        optimizer: as in `kernel_of`.
        grads: likewise.
        factor: likewise.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.SGD([weight], lr=0.5, fused=True)
        >>> step_by_kernel(optimizer, {weight: torch.ones(2)})
        True
        >>> weight.tolist()
        [0.5, 0.5]
    """
    kernel = kernel_of(optimizer, grads, factor)
    if kernel is not None:
        with torch.no_grad():
            kernel(list(grads.values()))
    return kernel is not None


def kernel_of(optimizer: Optimizer, grads: Mapping[nn.Parameter, Tensor], factor: float = 1.0) -> Kernel | None:
    """Returns what takes the steps that `optimizer.step()` would take, bit for bit, with gradients like these.

    There is none where it is not the kernel that would step or not alone (other optimizers and forms, hooks, a `step`
    of the user's own, loss scaling), where there is no state yet, and off the CPU. It is called where gradients are not
    asked for, as long as nothing but its own calls changes the optimizer: options, state and hooks are looked up here,
    once.

    Args:
        optimizer: whose parameters' own `grad` is neither looked at nor set.
        grads: of those parameters that have one, laid out in memory as they are; later ones come in the same order.
        factor: what the learning rates are multiplied by.
    """
    if type(optimizer) not in ONE_KERNEL or _is_not_alone(optimizer):
        return None
    places = {parameter: place for place, parameter in enumerate(grads)}
    calls: list[tuple[Callable[[list[Tensor]], object], list[int]]] = []
    for group in optimizer.param_groups:
        params: list[Any] = [parameter for parameter in group["params"] if parameter in grads]
        own = [grads[parameter] for parameter in params]
        if not group.get("fused") or group.get("differentiable") or not _are_of_one_kind([*params, *own]):
            return None
        prepare = _of_sgd if isinstance(optimizer, torch.optim.SGD) else _of_adam
        call = prepare(optimizer, group, params, group["lr"] * factor)
        if call is None:
            return None
        calls.append((call, [places[parameter] for parameter in params]))

    def kernel(given: Sequence[Tensor]) -> None:
        for call, which in calls:
            call([given[place] for place in which])
        optimizer._opt_called = True  # type: ignore[attr-defined]  # as schedules have it, who look whether it stepped

    return kernel


def _is_not_alone(optimizer: Optimizer) -> bool:
    """Whether something happens at a step besides it."""
    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        torch_optimizer._global_optimizer_pre_hooks,
        torch_optimizer._global_optimizer_post_hooks,
    )
    own = vars(optimizer).get("step")  # a schedule's, around the class's, or the user's
    replaced = own is not None and getattr(own, "__wrapped__", None) is not type(optimizer).step
    scales = (getattr(optimizer, name, None) is not None for name in ("grad_scale", "found_inf"))
    return any(hooks) or replaced or any(scales)


def _are_of_one_kind(tensors: Sequence[Tensor]) -> bool:
    """Whether they are dense, on a CPU, and of one type."""
    dense = all(tensor.is_cpu and tensor.layout is torch.strided for tensor in tensors)
    return dense and len({tensor.dtype for tensor in tensors}) <= 1


def _of_sgd(
    optimizer: Optimizer, group: Mapping[str, Any], params: list[Any], lr: float
) -> Callable[[list[Tensor]], object] | None:
    """What steps one group, or None if it cannot be done."""
    momenta: list[Any] = []
    if group["momentum"] != 0:
        momenta = [optimizer.state.get(parameter, {}).get("momentum_buffer") for parameter in params]
    if not params or any(momentum is None for momentum in momenta):
        return None
    options = {name: group[name] for name in ("weight_decay", "momentum", "dampening", "nesterov", "maximize")}

    def call(grads: list[Tensor]) -> None:
        torch._fused_sgd_(params, grads, momenta, lr=lr, is_first_step=False, **options)

    return call


def _of_adam(
    optimizer: Optimizer, group: Mapping[str, Any], params: list[Any], lr: float
) -> Callable[[list[Tensor]], object] | None:
    """What steps one group, or None if it cannot be done."""
    states: list[dict[str, Any]] = [optimizer.state.get(parameter, {}) for parameter in params]
    if not states or not all(states) or any(isinstance(beta, Tensor) for beta in group["betas"]):
        return None
    counts, means, squares = ([state[slot] for state in states] for slot in ("step", "exp_avg", "exp_avg_sq"))
    largest = [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else []
    decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay")
    kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
    options = {name: group[name] for name in ("weight_decay", "eps", "amsgrad", "maximize")}
    beta1, beta2 = group["betas"]

    def call(grads: list[Tensor]) -> None:
        torch._foreach_add_(counts, 1)
        kernel(params, grads, means, squares, largest, counts, lr=lr, beta1=beta1, beta2=beta2, **options)

    return call
