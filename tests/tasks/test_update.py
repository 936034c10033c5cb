import json
import warnings
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, optim
from torch.optim import lr_scheduler as schedules

from kinfold import files
from kinfold.errors import InputError
from kinfold.tasks.kernels import ONE_KERNEL
from kinfold.tasks.update import ELEMENTWISE, Updater, clip_rows, in_step, lanes_of

T = 3
SHAPES = {"weight": (4, 3), "bias": (4,), "scale": ()}
OPTIMIZERS = {
    "sgd": partial(optim.SGD, lr=0.1),
    "nesterov": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": partial(optim.Adam, lr=0.1, weight_decay=0.1),
    "amsgrad": partial(optim.Adam, lr=0.1, amsgrad=True),
    "adamw": partial(optim.AdamW, lr=0.1, weight_decay=0.1),
    "nadam": partial(optim.NAdam, lr=0.1),
    "radam": partial(optim.RAdam, lr=0.1),
    "adamax": partial(optim.Adamax, lr=0.1),
    "rmsprop": partial(optim.RMSprop, lr=0.1, momentum=0.5, centered=True),
    "adagrad": partial(optim.Adagrad, lr=0.1, initial_accumulator_value=0.1),
    "adadelta": partial(optim.Adadelta, lr=0.1),
}
SCHEDULERS = {
    "cosine": partial(schedules.CosineAnnealingLR, T_max=8),
    "lambda": partial(schedules.LambdaLR, lr_lambda=lambda epoch: 0.8**epoch),
    "multistep": partial(schedules.MultiStepLR, milestones=[2, 4], gamma=0.5),
    "warm": lambda optimizer: schedules.SequentialLR(
        optimizer,
        [schedules.LinearLR(optimizer, 0.1, total_iters=2), schedules.MultiStepLR(optimizer, milestones=[2])],
        milestones=[2],
    ),
    "onecycle": partial(schedules.OneCycleLR, max_lr=0.3, total_steps=20),
    "plateau": partial(schedules.ReduceLROnPlateau, patience=0, factor=0.5),
    "chained": lambda optimizer: schedules.ChainedScheduler(
        [schedules.ConstantLR(optimizer, 0.5, total_iters=3), schedules.ExponentialLR(optimizer, 0.9)]
    ),
}


def numbers(seed, tasks=T):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(tasks, *s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}


def decay_groups(parameters):
    """The usual groups, told apart by what must be asked of one task's parameters."""
    matrices = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0, "lr": 0.05}]
    return optim.AdamW(groups, lr=0.1)


def losses(period):
    """Task 0 improves, task 1 does not, task 2 does at times."""
    return [1.0 / period, 1.0, 1.0 + period % 2]


def advance(updater, periods, first=1, steps=3):
    for period in range(first, first + periods):
        for step in range(steps):
            updater.step(numbers(100 * period + step))
        updater.end_period(losses(period))


def separately(make, schedule, params, periods, steps=3):
    """Each task in an ordinary loop of its own, with ordinary parameters."""
    result = []
    for t in range(T):
        own = {name: nn.Parameter(value[t].clone()) for name, value in params.items()}
        optimizer = make(list(own.values()))
        scheduler = None if schedule is None else schedule(optimizer)
        for period in range(1, periods + 1):
            for step in range(steps):
                for name, grad in numbers(100 * period + step).items():
                    own[name].grad = grad[t].clone()
                optimizer.step()
            if isinstance(scheduler, schedules.ReduceLROnPlateau):
                scheduler.step(losses(period)[t])
            elif scheduler is not None:
                scheduler.step()
        result.append({name: value.detach() for name, value in own.items()})
    return {name: torch.stack([own[name] for own in result]) for name in params}


def close(mine, theirs, rtol=0.0):
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=rtol, atol=rtol)


def round_trip(state, tmp_path):
    """Through a checkpoint: safetensors and JSON."""
    tensors, others = state
    files.write_tensors(tmp_path / "state.safetensors", tensors, others)
    return files.read_tensors(tmp_path / "state.safetensors")


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_step_like_separate_training_and_exactly_so_in_a_form_that_is_given(name, foreach):
    params, make = numbers(0), partial(OPTIMIZERS[name], foreach=foreach)
    memory = {key: value.data_ptr() for key, value in params.items()}
    updater = Updater(params, make, None, fuse=False)
    assert not updater.fused
    expected = separately(make, None, params, periods=2)
    advance(updater, 2)
    close(params, expected, rtol=1e-12 if foreach is None and make.func in ONE_KERNEL else 0.0)
    assert {key: value.data_ptr() for key, value in params.items()} == memory


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_may_lie_in_memory_otherwise_than_parameters(name, fuse):
    grad, found = numbers(1), []
    turned = {key: value.mT.contiguous().mT if value.ndim > 2 else value for key, value in grad.items()}
    for own in (grad, turned):
        params = numbers(0)
        updater = Updater(params, OPTIMIZERS[name], None, fuse)
        updater.step(own)
        updater.step(own)
        found.append(params)
    assert turned["weight"].stride() != grad["weight"].stride()
    close(*found)


def test_sparse_gradients_are_stepped_by_the_form_that_takes_them():
    with torch.sparse.check_sparse_tensor_invariants():
        sparse = torch.sparse_coo_tensor([[1]], [[1.0, 2.0]], (3, 2), dtype=torch.float64)
    params = {"table": torch.zeros(1, 3, 2, dtype=torch.float64)}
    Updater(params, partial(optim.SGD, lr=0.5), None, fuse=False).step({"table": sparse[None]})
    assert params["table"].tolist() == [[[0, 0], [-0.5, -1], [0, 0]]]


def test_a_run_goes_on_bit_for_bit_where_gradients_are_sparse_at_times():
    def numbers_of(step):
        draws = torch.Generator().manual_seed(step)
        dense = torch.randn(1, 40, generator=draws)
        if step > 1:
            return {"bias": dense}
        with torch.sparse.check_sparse_tensor_invariants():
            table = torch.sparse_coo_tensor([[1]], torch.randn(1, 2, generator=draws), (3, 2))
        return {"table": table[None], "bias": dense}

    def started():
        params = {"table": torch.zeros(1, 3, 2), "bias": torch.zeros(1, 40)}
        return params, Updater(params, partial(optim.SGD, lr=0.3, momentum=0.9), None, fuse=False)

    params, updater = started()
    updater.step(numbers_of(0))
    again, resumed = started()
    for key, value in params.items():
        again[key].copy_(value)
    resumed.restore(*updater.state())
    for one in (updater, resumed):
        for step in range(2, 9):
            one.step(numbers_of(step))
    close(again, params)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_may_have_its_first_gradient_later_than_others(name, fuse):
    """As where a step leaves a block of the network out; the form is the same afterwards."""
    params, start = numbers(0), numbers(0)
    updater = Updater(params, OPTIMIZERS[name], None, fuse)
    own = [{key: nn.Parameter(value[t].clone()) for key, value in start.items()} for t in range(T)]
    optimizers = [OPTIMIZERS[name](list(rows.values())) for rows in own]
    for step, names in enumerate((["weight"], ["bias", "scale"], ["weight", "bias"], list(SHAPES))):
        grads = {key: value for key, value in numbers(step).items() if key in names}
        updater.step(grads)
        for t, optimizer in enumerate(optimizers):
            for key, parameter in own[t].items():
                parameter.grad = grads[key][t] if key in names else None
            optimizer.step()
    assert updater.fused == fuse
    for key, value in params.items():
        torch.testing.assert_close(value, torch.stack([rows[key].detach() for rows in own]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fuse", [False, True])
def test_an_optimizer_may_step_some_of_the_parameters_alone(fuse):
    params = numbers(0)
    updater = Updater(params, lambda parameters: optim.AdamW(list(parameters)[:1], lr=0.1), None, fuse)
    assert updater.fused == fuse
    updater.step(numbers(1))
    for name, value in numbers(0).items():
        assert torch.equal(params[name], value) == (name != next(iter(SHAPES)))


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_fused_form_takes_the_same_steps(name, foreach):
    params, make = numbers(0), partial(OPTIMIZERS[name], foreach=foreach)
    updater = Updater(params, make, SCHEDULERS["cosine"], fuse=True)
    assert updater.fused
    expected = separately(make, SCHEDULERS["cosine"], params, periods=3)
    advance(updater, 3)
    assert updater.fused
    close(params, expected, rtol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lanes_take_the_same_steps_each_by_itself(name):
    """Lane after lane, or at once; where other tasks are to step, the form is left."""
    params = numbers(0)
    updater = Updater(params, OPTIMIZERS[name], SCHEDULERS["cosine"], fuse=True, lane=2)
    expected = separately(OPTIMIZERS[name], SCHEDULERS["cosine"], params, periods=2)
    for step in range(3):
        grads = numbers(100 + step)
        for tasks in ([2], [0, 1]):
            updater.step({key: value[tasks] for key, value in grads.items()}, tasks)
    updater.end_period(losses(1))
    for step in range(3):
        updater.step(numbers(200 + step))
    updater.end_period(losses(2))
    assert updater.fused
    close(params, expected, rtol=1e-12)
    assert len(updater.options()["lr"]) == T
    updater.step({key: value[[0]] for key, value in numbers(7).items()}, [0])
    assert not updater.fused


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lanes_at_different_points_are_restored(name, tmp_path):
    def started():
        params = numbers(0)
        return params, Updater(params, OPTIMIZERS[name], SCHEDULERS["cosine"], fuse=True, lane=2)

    params, updater = started()
    advance(updater, 2)
    updater.step({key: value[[2]] for key, value in numbers(7).items()}, [2])
    tensors, others = round_trip(updater.state(), tmp_path)
    again, resumed = started()
    for key, value in params.items():
        again[key].copy_(value)
    resumed.restore(tensors, others)
    assert resumed.fused
    for one in (updater, resumed):
        advance(one, 2, first=3)
    close(again, params)


def test_moments_cross_lanes_and_counts_that_differ_part_them():
    params, origin = numbers(0), torch.tensor([2, 1, 1])
    updater = Updater(params, OPTIMIZERS["adam"], None, fuse=True, lane=2)
    advance(updater, 1)
    before, _ = updater.state()
    updater.carry(lambda _name, _slot, moments: moments[origin], origin.tolist())
    assert updater.fused
    after, _ = updater.state()
    for t, donor in enumerate(origin.tolist()):
        for name in SHAPES:
            assert torch.equal(after[f"{t}/{name}/exp_avg"], before[f"{donor}/{name}/exp_avg"])
    updater.step({key: value[[2]] for key, value in numbers(7).items()}, [2])
    updater.carry(lambda _name, _slot, moments: moments[origin], origin.tolist())
    assert not updater.fused
    counts, _ = updater.state()
    assert [int(counts[f"{t}/bias/step"]) for t in range(T)] == [4, 3, 3]


@given(st.integers(1, 70), st.integers(1, 70))
def test_lanes_are_alike_and_as_few_as_can_be(tasks, most):
    lanes = lanes_of(tasks, most)
    assert [t for lane in lanes for t in lane] == list(range(tasks))
    sizes = {len(lane) for lane in lanes}
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert len(lanes) == -(-tasks // most)


def test_every_fused_optimizer_is_tested():
    assert {make.func for make in OPTIMIZERS.values()} == ELEMENTWISE


@pytest.mark.parametrize("fuse", [False, True])
def test_decay_groups_are_told_apart_by_one_tasks_parameters(fuse):
    params = numbers(0)
    updater = Updater(params, decay_groups, SCHEDULERS["cosine"], fuse)
    assert updater.fused == fuse
    expected = separately(decay_groups, SCHEDULERS["cosine"], params, periods=2)
    advance(updater, 2)
    close(params, expected, rtol=1e-12)


def test_each_task_may_have_an_optimizer_of_its_own():
    params = numbers(0)
    makers = [OPTIMIZERS["nesterov"], OPTIMIZERS["adam"], partial(optim.SGD, lr=0.5)]
    before = {name: value.clone() for name, value in params.items()}
    updater = Updater(params, makers, SCHEDULERS["cosine"], fuse=True)
    assert not updater.fused
    assert updater.options()["lr"].tolist() == [0.1, 0.1, 0.5]
    advance(updater, 2)
    for t, make in enumerate(makers):
        expected = separately(make, SCHEDULERS["cosine"], before, periods=2)
        close({n: v[t] for n, v in params.items()}, {n: v[t] for n, v in expected.items()})


def test_optimizers_that_look_at_a_whole_tensor_are_never_fused():
    params, make = numbers(0), partial(optim.Adafactor, lr=0.1)
    updater = Updater(params, make, None, fuse=True)
    assert not updater.fused
    expected = separately(make, None, params, periods=2)
    advance(updater, 2)
    close(params, expected)

    class Mine(optim.SGD):
        pass

    assert not Updater(numbers(0), partial(Mine, lr=0.1), None, fuse=True).fused


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("fuse", [False, True])
def test_schedules_are_those_of_separate_training(scheduler, fuse):
    params = numbers(0)
    updater = Updater(params, OPTIMIZERS["nesterov"], SCHEDULERS[scheduler], fuse)
    assert updater.fused == (fuse and scheduler != "plateau")  # which follows each task's own losses
    expected = separately(OPTIMIZERS["nesterov"], SCHEDULERS[scheduler], params, periods=6)
    advance(updater, 6)
    close(params, expected, rtol=1e-12)


@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS])
@pytest.mark.parametrize("name", ["nesterov", "adam"])
def test_unfusing_midway_changes_nothing(name, scheduler):
    params, schedule = numbers(0), SCHEDULERS.get(scheduler)
    updater = Updater(params, OPTIMIZERS[name], schedule, fuse=True)
    expected = separately(OPTIMIZERS[name], schedule, params, periods=5)
    advance(updater, 3)
    rates = updater.options()["lr"].tolist()
    updater.unfuse()
    assert not updater.fused
    assert updater.options()["lr"].tolist() == rates
    advance(updater, 2, first=4)
    close(params, expected, rtol=1e-12)


def test_a_step_of_some_tasks():
    params = numbers(0)
    updater = Updater(params, OPTIMIZERS["adam"], SCHEDULERS["cosine"], fuse=True)
    expected = separately(OPTIMIZERS["adam"], None, params, periods=1)
    for step in range(3):
        updater.step(numbers(100 + step))
    close(params, expected, rtol=1e-12)
    grads = {name: value[[2]] for name, value in numbers(7).items()}
    updater.step(grads, [2])
    moved = [not torch.equal(params["weight"][t], expected["weight"][t]) for t in range(T)]
    assert moved == [False, False, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        updater.end_period([1.0] * T)  # tasks 0 and 1 have not stepped since they parted


def test_a_parameter_without_a_gradient_is_left_alone():
    for fuse in (False, True):
        params = numbers(0)
        before = params["bias"].clone()
        updater = Updater(params, OPTIMIZERS["adamw"], None, fuse)
        for step in range(2):
            updater.step({name: grad for name, grad in numbers(step).items() if name != "bias"})
        assert torch.equal(params["bias"], before)  # not even decayed


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize(
    ("name", "scheduler"),
    [*((name, "cosine") for name in OPTIMIZERS), *(("nesterov", scheduler) for scheduler in SCHEDULERS)],
)
def test_a_restored_run_goes_on_bit_for_bit(name, scheduler, fuse, tmp_path):
    def started():
        params = numbers(0)
        return params, Updater(params, OPTIMIZERS[name], SCHEDULERS[scheduler], fuse)

    params, updater = started()
    advance(updater, 3)
    tensors, others = round_trip(updater.state(), tmp_path)
    kept = {key: value.clone() for key, value in params.items()}
    advance(updater, 4, first=4)

    again, resumed = started()
    for key, value in kept.items():
        again[key].copy_(value)
    resumed.restore(tensors, others)
    assert resumed.fused == updater.fused
    advance(resumed, 4, first=4)
    close(again, params)
    assert resumed.options()["lr"].tolist() == updater.options()["lr"].tolist()


@pytest.mark.parametrize("part", ["uneven", "reset", "tuned"])
def test_tasks_that_have_parted_are_restored_apart(part, tmp_path):
    params = numbers(0)
    updater = Updater(params, OPTIMIZERS["adam"], SCHEDULERS["cosine"], fuse=True)
    advance(updater, 2)
    if part == "uneven":
        updater.step({name: value[[1]] for name, value in numbers(7).items()}, [1])
    elif part == "reset":
        updater.reset(torch.tensor([True, False, False]))
    else:
        updater.tune({"lr": torch.tensor([0.01, torch.nan, torch.nan])})
    tensors, others = round_trip(updater.state(), tmp_path)
    again = {key: value.clone() for key, value in params.items()}
    resumed = Updater(again, OPTIMIZERS["adam"], SCHEDULERS["cosine"], fuse=True)
    resumed.restore(tensors, others)
    advance(updater, 2, first=3)
    advance(resumed, 2, first=3)
    close(again, params)


@pytest.mark.parametrize("claimed", [(True, True, False), (True, True, True)])
def test_one_that_says_otherwise_is_not_believed(claimed):
    """Shares of the tasks may each have been fused, at different points."""
    parted = Updater(numbers(0), OPTIMIZERS["adam"], None, fuse=False)
    advance(parted, 1)
    tensors, others = parted.state()
    assert in_step(tensors, others)
    parted.step({name: value[:1] for name, value in numbers(1).items()}, tasks=[0])
    tensors, others = parted.state()
    assert not in_step(tensors, others)
    for other, fused in zip(others, claimed, strict=True):
        other["fused"] = fused
    whole = Updater(numbers(0), OPTIMIZERS["adam"], None, fuse=True)
    assert whole.fused
    whole.restore(tensors, others)
    assert not whole.fused
    mine, _ = whole.state()
    assert mine.keys() == tensors.keys()
    assert all(torch.equal(value, mine[name]) for name, value in tensors.items())


def test_the_state_of_one_form_is_that_of_the_other():
    states = []
    for fuse in (False, True):
        params = numbers(0)
        updater = Updater(params, OPTIMIZERS["adam"], SCHEDULERS["cosine"], fuse)
        advance(updater, 2)
        states.append(updater.state())
    (rows, row_values), (fused, fused_values) = states
    assert rows.keys() == fused.keys()
    close(fused, rows, rtol=1e-12)
    assert json.dumps(row_values).replace('"fused": false}', '"fused": true}') == json.dumps(fused_values)


def test_tuned_rates_under_a_cosine():
    """From half-way, cosine annealing of an SGD at 1.0 goes on from the new value to zero."""
    updater = Updater(numbers(0), partial(optim.SGD, lr=1.0), partial(schedules.CosineAnnealingLR, T_max=4), fuse=True)
    advance(updater, 2, steps=1)
    assert updater.options()["lr"].tolist() == pytest.approx([0.5] * 3)
    updater.tune({"lr": torch.tensor([torch.nan, 0.25, 1.0])})
    assert updater.options()["lr"].tolist() == pytest.approx([0.5, 0.25, 1.0])
    advance(updater, 1, steps=1)
    share = (1 + 2**-0.5 * -1) / 1.0  # (1 + cos 3π/4) / (1 + cos π/2)
    assert updater.options()["lr"].tolist() == pytest.approx([0.5 * share, 0.25 * share, share])
    advance(updater, 1, steps=1)
    assert updater.options()["lr"].tolist() == pytest.approx([0.0] * 3)


@pytest.mark.parametrize("scheduler", ["cosine", "lambda", "warm", "onecycle", "chained", "multistep"])
def test_a_tuned_rate_is_never_undone_by_the_schedule(scheduler):
    def rates(factor):
        updater = Updater(numbers(0), OPTIMIZERS["nesterov"], SCHEDULERS[scheduler], fuse=True)
        advance(updater, 1, steps=1)
        if factor != 1.0:
            updater.tune({"lr": factor * torch.tensor(updater.options()["lr"].tolist(), dtype=torch.float64)})
        seen = []
        for period in range(2, 7):
            seen += updater.options()["lr"].tolist()
            advance(updater, 1, first=period, steps=1)
        return torch.tensor(seen)

    torch.testing.assert_close(rates(0.25), 0.25 * rates(1.0))


@pytest.mark.parametrize("scheduler", [*SCHEDULERS, "cyclic", "warm restarts", "from 0"])
def test_a_cut_rate_is_never_undone_by_the_schedule(scheduler):
    """Of every group, and although the first one's is 0 at the time."""
    others = {
        "cyclic": partial(schedules.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=3, cycle_momentum=False),
        "warm restarts": partial(schedules.CosineAnnealingWarmRestarts, T_0=2),
        "from 0": partial(schedules.LambdaLR, lr_lambda=[lambda period: min(1.0, max(0, period - 1) / 4), lambda _: 1]),
    }

    def rates(factor):
        updater = Updater(numbers(0), decay_groups, (SCHEDULERS | others)[scheduler], fuse=True)
        advance(updater, 1, steps=1)
        updater.tune({"lr": torch.full((T,), factor)}, relative=True)
        seen = []
        for period in range(2, 7):
            seen += [group["lr"] for values in updater.state()[1] for group in values["groups"]]
            advance(updater, 1, first=period, steps=1)
        return torch.tensor(seen)

    whole = rates(1.0)
    assert whole.any()
    torch.testing.assert_close(rates(0.5), 0.5 * whole)


def test_factors_of_other_options_and_of_some_tasks():
    updater = Updater(numbers(0), decay_groups, None, fuse=True)
    given = {"lr": torch.tensor([torch.nan, 0.5, 1.0]), "weight_decay": torch.tensor([torch.nan, torch.nan, 2.0])}
    updater.tune(given, relative=True)
    _, values = updater.state()
    options = [[(g["lr"], g["weight_decay"]) for g in value["groups"]] for value in values]
    assert options == [[(0.1, 0.2), (0.05, 0.0)], [(0.05, 0.2), (0.025, 0.0)], [(0.1, 0.4), (0.05, 0.0)]]


def test_groups_keep_their_proportion_and_other_options_are_set_as_they_are():
    updater = Updater(numbers(0), decay_groups, None, fuse=True)
    updater.tune({"lr": torch.tensor([torch.nan, 0.2, 0.4]), "weight_decay": torch.tensor([torch.nan, torch.nan, 0.7])})
    _, values = updater.state()
    options = [[(round(g["lr"], 6), round(g["weight_decay"], 6)) for g in value["groups"]] for value in values]
    assert options == [[(0.1, 0.2), (0.05, 0.0)], [(0.2, 0.2), (0.1, 0.0)], [(0.4, 0.7), (0.2, 0.7)]]
    with pytest.raises(InputError, match="no option 'momentum' to tune"):
        updater.tune({"momentum": torch.ones(3)})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_reset_task_is_as_at_its_start(name):
    params = numbers(0)
    updater = Updater(params, OPTIMIZERS[name], None, fuse=True)
    advance(updater, 2)
    fresh = {key: value.clone() for key, value in params.items()}
    updater.reset(torch.tensor([False, True, False]))
    advance(updater, 1, first=5)
    beginner = Updater(fresh, OPTIMIZERS[name], None, fuse=False)
    advance(beginner, 1, first=5)
    close({n: v[1] for n, v in params.items()}, {n: v[1] for n, v in fresh.items()})
    if name != "sgd":  # which has nothing to forget
        assert not torch.equal(params["weight"][0], fresh["weight"][0])


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", ["nesterov", "adam", "nadam"])
def test_moments_follow_their_parameters(name, fuse):
    """After task 0 copies task 1, moments and step count included, equal gradients keep them equal."""
    params = numbers(0)
    updater = Updater(params, OPTIMIZERS[name], None, fuse)
    advance(updater, 2)
    if not fuse:
        updater.step({key: value[[1]] for key, value in numbers(7).items()}, [1])  # one step ahead
    origin = torch.tensor([1, 1, 2])
    for value in params.values():
        value.copy_(value[origin])
    updater.carry(lambda _name, _slot, moments: moments[origin], origin.tolist())
    assert updater.fused == fuse
    for step in range(3):
        updater.step({key: value[origin] for key, value in numbers(50 + step).items()})
    for value in params.values():
        assert torch.equal(value[0], value[1])
        assert not torch.equal(value[0], value[2])


@pytest.mark.parametrize("fuse", [False, True])
def test_blended_moments_and_the_donors_counters(fuse):
    params = numbers(0)
    updater = Updater(params, OPTIMIZERS["adam"], None, fuse)
    advance(updater, 1)
    before, _ = updater.state()
    W = torch.tensor([[0.25, 0.75, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    names = []
    updater.carry(lambda name, _slot, moments: names.append(name) or torch.tensordot(W, moments, 1), [1, 1, 2])
    after, _ = updater.state()
    assert set(names) == set(SHAPES)
    for name in SHAPES:
        for slot in ("exp_avg", "exp_avg_sq"):
            mixed = 0.25 * before[f"0/{name}/{slot}"] + 0.75 * before[f"1/{name}/{slot}"]
            torch.testing.assert_close(after[f"0/{name}/{slot}"], mixed)
            assert torch.equal(after[f"2/{name}/{slot}"], before[f"2/{name}/{slot}"])
        assert float(after[f"0/{name}/step"]) == 3  # a count, even of a parameter that is one number


def test_a_donor_without_moments_leaves_none():
    updater = Updater(numbers(0), OPTIMIZERS["nesterov"], None, fuse=False)
    advance(updater, 1)
    updater.reset(torch.tensor([False, True, False]))
    updater.carry(lambda _name, _slot, moments: moments, [1, 1, 2])
    tensors, _ = updater.state()
    assert {key.split("/")[0] for key in tensors} == {"2"}


def test_clipping_is_per_task():
    grads = {
        name: value * torch.tensor([0.01, 1.0, 100.0]).view(-1, *[1] * (value.ndim - 1))
        for name, value in numbers(3).items()
    }
    grads["bias"][1, 0] = torch.nan
    clipped = clip_rows(grads, 1.0)
    for t in range(T):
        own = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES.values()]
        for parameter, name in zip(own, SHAPES, strict=True):
            parameter.grad = grads[name][t].clone()
        nn.utils.clip_grad_norm_(own, 1.0)
        for parameter, name in zip(own, SHAPES, strict=True):
            torch.testing.assert_close(clipped[name][t], parameter.grad, rtol=1e-12, atol=0, equal_nan=True)
    assert torch.equal(clipped["weight"][0], grads["weight"][0])
    assert clipped["weight"][1].isnan().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(optim.SGD, lr=-1.0), "optimizer: it cannot be made .*Invalid learning rate"),
        (partial(optim.SGD, lr=0.1, nesterov=True), "optimizer: it cannot be made"),
        (lambda parameters: None, "the maker returned NoneType"),
        (optim.LBFGS, "LBFGS asks for the loss more than once"),
        ([partial(optim.SGD, lr=0.1)] * 2, "optimizer: 2 given for 3 tasks"),
    ],
)
def test_what_cannot_step_is_refused(make, message):
    with pytest.raises(InputError, match=message) as error:
        Updater(numbers(0), make, None, fuse=True)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="scheduler: it cannot be made"):
        Updater(numbers(0), OPTIMIZERS["sgd"], partial(schedules.OneCycleLR, max_lr=0.1), fuse=True)


def test_state_from_another_device_goes_to_that_of_the_parameter():
    """As when it comes from another process: all but counters, unless the optimizer keeps these beside it too."""
    params = {"weight": torch.zeros(2, 4, 3, device="meta")}
    given = {("weight", "row_var"): torch.ones(4, 1), ("weight", "step"): torch.tensor(3.0)}
    for make, of_step in ((partial(optim.Adafactor, lr=0.1), "cpu"), (partial(optim.Adam, capturable=True), "meta")):
        updater = Updater(params, make, None, fuse=False)
        updater.carry(lambda _name, _slot, moments: moments, [2, 1], beside=[given])
        own, other = updater.slots()
        assert {slot: value.device.type for (_, slot), value in own.items()} == {"row_var": "meta", "step": of_step}
        assert not other
