import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, NAdam
from torch.optim.optimizer import register_optimizer_step_pre_hook

from kinfold.tasks.kernels import step_by_kernel

MAKERS = [
    partial(SGD, lr=0.1),
    partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    partial(SGD, lr=0.1, momentum=0.9, dampening=0.5, maximize=True),
    partial(Adam, lr=0.01),
    partial(Adam, lr=0.01, betas=(0.5, 0.9), weight_decay=0.1, amsgrad=True, eps=1e-6),
    partial(AdamW, lr=0.01, weight_decay=0.1, maximize=True),
    partial(AdamW, lr=0.01, amsgrad=True),
]


def drawn(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((3, 5), (5,), (2, 3, 4))]


def made(make, dtype=torch.float32):
    first, *others = map(nn.Parameter, drawn(0, dtype))
    optimizer = make([{"params": [first]}, {"params": others, "lr": 0.05}], fused=True)
    return [first, *others], optimizer


def stepped(params, optimizer, grads):
    """A step by torch itself."""
    for parameter, grad in zip(params, grads, strict=True):
        parameter.grad = grad
    optimizer.step()
    for parameter in params:
        parameter.grad = None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", MAKERS)
def test_it_is_torchs_step_bit_for_bit(make, dtype):
    params, optimizer = made(make, dtype)
    stepped(params, optimizer, drawn(1, dtype))
    (others, expected), grads = copy.deepcopy((params, optimizer)), drawn(2, dtype)
    for _ in range(3):
        stepped(others, expected, [grad.clone() for grad in grads])
        assert step_by_kernel(optimizer, dict(zip(params, grads, strict=True)))
    assert all(map(torch.equal, params, others))
    assert str(optimizer.state_dict()) == str(expected.state_dict())
    found, wanted = optimizer.state_dict()["state"], expected.state_dict()["state"]
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=0.0)  # as text they are rounded
    assert all(parameter.grad is None for parameter in params)


def test_rates_are_multiplied():
    params, optimizer = made(MAKERS[1])
    stepped(params, optimizer, drawn(1))
    others, expected = copy.deepcopy((params, optimizer))
    for group in expected.param_groups:
        group["lr"] *= 0.5
    stepped(others, expected, drawn(2))
    assert step_by_kernel(optimizer, dict(zip(params, drawn(2), strict=True)), factor=0.5)
    assert all(map(torch.equal, params, others))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]


def test_what_has_no_gradient_is_left_alone():
    params, optimizer = made(MAKERS[3])
    stepped(params, optimizer, drawn(1))
    before = params[2].detach().clone()
    assert step_by_kernel(optimizer, dict(zip(params[:2], drawn(2)[:2], strict=True)))
    assert torch.equal(params[2], before)
    assert [float(optimizer.state[parameter]["step"]) for parameter in params] == [2, 2, 1]


def test_a_schedule_knows_that_it_has_stepped(recwarn):
    params, optimizer = made(MAKERS[0])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    assert step_by_kernel(optimizer, dict(zip(params, drawn(1), strict=True)))
    schedule.step()
    assert not recwarn.list


def hooked(optimizer):
    optimizer.register_step_post_hook(lambda *_: None)


def scaled(optimizer):
    optimizer.grad_scale = torch.ones(())


def replaced(optimizer):
    optimizer.step = lambda: None


def unfused(optimizer):
    optimizer.param_groups[1]["fused"] = False


@pytest.mark.parametrize("change", [hooked, scaled, replaced, unfused])
def test_what_asks_for_more_than_the_kernel_is_left_to_torch(change):
    params, optimizer = made(MAKERS[0])
    change(optimizer)
    before = copy.deepcopy(params)
    assert not step_by_kernel(optimizer, dict(zip(params, drawn(1), strict=True)))
    assert all(map(torch.equal, params, before))


def test_a_hook_of_all_optimizers_is_heard():
    params, optimizer = made(MAKERS[0])
    handle = register_optimizer_step_pre_hook(lambda *_: None)
    try:
        assert not step_by_kernel(optimizer, dict(zip(params, drawn(1), strict=True)))
    finally:
        handle.remove()


@pytest.mark.parametrize("make", [MAKERS[1], MAKERS[3]])
def test_the_first_step_is_torchs(make):
    params, optimizer = made(make)
    assert not step_by_kernel(optimizer, dict(zip(params, drawn(1), strict=True)))
    assert not any(optimizer.state.values())


def test_other_gradients_and_optimizers_are_left_to_torch():
    params, optimizer = made(MAKERS[0])
    grads = drawn(1)
    assert not step_by_kernel(optimizer, dict(zip(params, [grads[0].to_sparse(), *grads[1:]], strict=True)))
    assert not step_by_kernel(optimizer, dict(zip(params, [grads[0].double(), *grads[1:]], strict=True)))
    assert not step_by_kernel(NAdam(params), dict(zip(params, grads, strict=True)))
