"""HESSO and CRIC, structured pruning in the one training (Chen et al., arXiv:2409.09085).

Source: *HESSO: Towards Automatic Efficient and User Friendly Any Neural Network Training and Pruning*; the authors'
code is microsoft/only_train_once.

Legend: G groups (see `channel_groups`), U units, O rows of a parameter, K groups to be pruned.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from kinfold.errors import InputError
from kinfold.methods.base import OWN, Batch, Context, Inner, Method, Model, Params, Rows, State, within
from kinfold.methods.channel_groups import ChannelGroups, channel_groups, without_zero_channels

_GROUP, _UNIT, _EXAMPLE, _CACHE = f"{OWN}group/", f"{OWN}unit", f"{OWN}example/", "cache/"
_SAFE = 1e-8
_SHARES = (0.25, 0.5, 0.75)


def saliency(
    weight: Float[Tensor, " G"], step: Float[Tensor, " G"], product: Float[Tensor, " G"], size: Float[Tensor, " G"]
) -> Float[Tensor, " G"]:
    """Returns how important groups are: the mean of five scores, each over its norm over all groups.

    With w a group's weights and d the direction that the optimizer takes them (minus their step, of any length), they
    are ‖w‖, ‖w‖ / size, ⟨w, d⟩ / (‖w‖ ‖d‖) + 1, |⟨w, d⟩| and ⟨w, d⟩² / 2: magnitude, mean magnitude, cosine, and Taylor
    terms of first and second order.

    Args:
        weight: ‖w‖² of each group.
        step: ‖d‖².
        product: ⟨w, d⟩.
        size: how many weights a group has.

    Example:
        >>> saliency(torch.tensor([4.0, 1.0]), torch.ones(2), torch.tensor([1.0, 0.0]), torch.ones(2)).round(decimals=2)
        tensor([0.9200, 0.2900])
    """
    norm, taylor = weight.sqrt(), product.abs()
    cosine = product / (norm + _SAFE) / (step.sqrt() + _SAFE) + 1
    scores = torch.stack([norm, norm / size, cosine, taylor, taylor.square() / 2])
    # Over the greatest first, since squares of small steps' squares are nothing in float32.
    scores = scores / scores.abs().amax(1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    norms = scores.square().sum(1, keepdim=True).sqrt()
    return (scores / (norms + _SAFE)).mean(0)


def lowest(
    scores: Float[Tensor, " G"],
    count: Int64[Tensor, ""],
    unit: Int64[Tensor, " G"],
    first: Bool[Tensor, " G"] | None = None,
) -> Bool[Tensor, " G"]:
    """Returns which groups have the lowest scores; the best of each unit is never among them.

    Args:
        scores: of the groups.
        count: how many; no more than there are without the best of each unit.
        unit: of each group.
        first: which are among them in any case, whatever their scores.

    Example:
        >>> unit = torch.tensor([0, 0, 1, 1])
        >>> lowest(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor(2), unit).tolist()
        [True, False, True, False]
    """
    first = torch.zeros_like(scores, dtype=torch.bool) if first is None else first
    scores = torch.where(first, -torch.inf, scores)
    place = torch.arange(len(scores), device=scores.device)
    top = torch.full_like(scores, -torch.inf).scatter_reduce(0, unit, scores, "amax").gather(0, unit)
    last = torch.full_like(place, -1).scatter_reduce(0, unit, torch.where(scores == top, place, -1), "amax")
    best = place == last.gather(0, unit)
    order = torch.where(best, torch.inf, scores).argsort(stable=True)
    return (order.argsort() < count) & ~best


def remaining(step: Tensor, steps: Tensor) -> Tensor:
    """Returns what is left of a group after one of its steps of decay: (T − t − 1) / (T − t), of T steps from t = 0.

    Example:
        >>> left = [remaining(torch.tensor(float(t)), torch.tensor(4.0)).item() for t in range(4)]
        >>> [round(float(torch.tensor(left[: t + 1]).prod()), 2) for t in range(4)]
        [0.75, 0.5, 0.25, 0.0]
    """
    return ((steps - step - 1) / (steps - step).clamp_min(1)).clamp_min(0)


@final
@dataclass(frozen=True)
class HESSO(Method):
    """Prunes whole channels while it trains, and hands back the smaller network.

    With CRIC, from `begin` on, each unit first loses a quarter, a half and three quarters of its groups for one batch
    each, to see by what factor the loss is then greater. The K groups of lowest saliency decay to nothing over a cycle
    while all else trains; then all is restored, and those that were among the lowest meanwhile, and had not been tried,
    are tried in the next cycle; until there are none, or `cycles` are done. At last the K groups are picked that have
    the lowest mean saliency over all these steps, plus the mean factor of their unit by the number of its groups; all
    is restored once more, and they decay to zero until `finish`. Without CRIC the K groups are picked by the saliency
    of the moment, in `rounds` of as many each, and decay one round after another.

    A task is always scored as it would be pruned: groups that are not picked yet are taken by their magnitude. So the
    epoch that is kept has the sparsity asked for. At export, channels that are zero are taken out.

    Attributes:
        sparsity: share of the groups that are pruned: K / G. Each unit keeps one channel at least.
        begin: share of the run after which pruning begins.
        finish: share of the run after which it is done, with `accumulate` 1; the rest trains the smaller network.
        rounds: without CRIC.
        cycles: of CRIC, at most; 0 is HESSO without CRIC. They take the first half of the time.

    Example:
        >>> HESSO(sparsity=0.5, cycles=0).rounds
        5
    """

    conflicts: ClassVar[frozenset[str]] = frozenset({"QuantisedDistillation"})  # its grids need not have a zero

    sparsity: float | int = 0.5
    begin: float | int = 0.1
    finish: float | int = 0.6
    rounds: int = 5
    cycles: int = 4

    def __post_init__(self) -> None:
        if not 0.0 < self.sparsity < 1.0:
            raise InputError(f"hesso: sparsity is {self.sparsity!r}; give a share between 0 and 1.")
        if not 0.0 <= self.begin < self.finish <= 1.0:
            raise InputError(
                f"hesso: begin is {self.begin!r} and finish {self.finish!r}; give shares of the run with "
                "0 ≤ begin < finish ≤ 1."
            )
        if self.rounds < 1 or self.cycles < 0:
            raise InputError(
                f"hesso: rounds is {self.rounds} and cycles {self.cycles}; give at least 1 and at least 0."
            )

    def start(self, params: Params, context: Context) -> State:
        x = context.batch(context.rows[:2]).x
        parts = x if isinstance(x, tuple) else (x,)
        groups = channel_groups(_materialised(params, context), tuple(part.cpu() for part in parts))
        rows = {name: group for name, group in groups.rows.items() if name in params}
        G, U = len(groups.unit), len(set(groups.unit.tolist()))
        K = min(int(self.sparsity * G), G - U)
        if K < 1:
            raise InputError(f"hesso: {G} channels of {U} layers can be taken out, too few to prune; leave hesso out.")
        steps = context.periods * context.steps
        whole = max(1, round((self.finish - self.begin) * steps))
        probe = 2 * len(_SHARES) * U if self.cycles else 0
        cycle = max(1, (whole // 2 - probe) // self.cycles) if self.cycles else 0
        first = next(iter(params.values()))
        size = torch.zeros(G + 1, dtype=first.dtype)
        for name, group in rows.items():
            size.index_add_(0, group % (G + 1), torch.full((len(group),), params[name][0].numel(), dtype=first.dtype))
        none = torch.zeros(G, dtype=torch.bool)
        plan = {
            "begin": round(self.begin * steps),
            "round": max(1, whole // self.rounds),
            "cycle": cycle,
            "probe": probe,
            "decay": max(1, whole - probe - cycle * self.cycles),
            "count": K,
        }
        state: State = {
            **{f"{OWN}{name}": torch.tensor(value) for name, value in plan.items()},
            **{_GROUP + name: group for name, group in rows.items()},
            **{f"{_EXAMPLE}{i}": part.clone() for i, part in enumerate(parts)},
            _UNIT: groups.unit,
            f"{OWN}size": size[:G],
            "step": torch.tensor(0),
            "picked": none,
            "pruned": none.clone(),
        }
        if self.cycles:
            state |= {
                "cycles": torch.tensor(0),
                "done": torch.tensor(-1),
                "tried": none.clone(),
                "trying": none.clone(),
                "waiting": none.clone(),
                "loss": torch.zeros((), dtype=first.dtype),
                "reference": torch.zeros((), dtype=first.dtype),
                "rise": torch.zeros(G, dtype=first.dtype),
                "sum": torch.zeros(G, dtype=first.dtype),
                "sums": torch.zeros((), dtype=first.dtype),
                **{_CACHE + name: value.clone() for name, value in params.items()},
            }
        return {name: value.to(first.device) for name, value in state.items()}

    def loss(
        self, inner: Inner, model: Model, batch: Batch, state: State, key: Int64[Tensor, ""]
    ) -> Float[Tensor, ""] | tuple[Float[Tensor, ""], State]:
        del key
        value = inner(model, batch)
        return (value, {"loss": value.detach().to(state["loss"].dtype)}) if self.cycles else value

    def before_step(self, params: Params, grads: Params, state: State) -> tuple[Params, State]:
        del params
        if not self.cycles:
            return grads, state
        # Gradients where a unit has lost groups to see what that costs are not to stay in the optimizer's moments.
        since = state["step"] - state[f"{OWN}begin"]
        keep = (since < 0) | (since >= state[f"{OWN}probe"]) | (since % 2 == 0)
        return {name: torch.where(keep, grad, 0.0) for name, grad in grads.items()}, state

    def update(self, before: Params, params: Params, state: State) -> tuple[Params, State]:
        scores = _saliency_of(before, params, state)
        params, new, left = (self._corrected if self.cycles else self._in_rounds)(before, params, scores, state)
        return _shrunk(params, torch.where(new["pruned"], 0.0, left), state), {**new, "step": state["step"] + 1}

    def _in_rounds(
        self, before: Params, params: Params, scores: Float[Tensor, " G"], state: State
    ) -> tuple[Params, State, Float[Tensor, " G"]]:
        """HESSO alone: returns (parameters, state, what is to be left of each group)."""
        del before
        length, K = state[f"{OWN}round"], state[f"{OWN}count"]
        since = state["step"] - state[f"{OWN}begin"]
        number, t = since.div(length, rounding_mode="floor"), since % length
        going = (since >= 0) & (number < self.rounds)
        upto = torch.where(number == self.rounds - 1, K, (number + 1) * (K // self.rounds))
        picks = lowest(scores, upto, state[_UNIT], state["picked"])
        picked = torch.where(going & (t == 0), picks, state["picked"])
        left = torch.where(going & picked, remaining(t, length).to(scores.dtype), 1.0)
        pruned = torch.where(going & (t == length - 1), picked, state["pruned"])
        return params, {**state, "picked": picked, "pruned": pruned}, left

    def _corrected(
        self, before: Params, params: Params, scores: Float[Tensor, " G"], state: State
    ) -> tuple[Params, State, Float[Tensor, " G"]]:
        """HESSO with CRIC, likewise."""
        names = ("begin", "probe", "cycle", "decay", "count", "unit")
        begin, probe, length, decay, K, unit = (state[OWN + name] for name in names)
        step, since = state["step"], state["step"] - begin
        cache = {name: state[_CACHE + name] for name in params}
        cache = {name: torch.where(since == 0, before[name], value) for name, value in cache.items()}
        reference = torch.where(since == 0, state["loss"], state["reference"])

        # Each unit without some of its groups, by turns with all of them.
        probing, lost = (since >= 0) & (since < probe), since % 2 == 1
        share = torch.tensor(_SHARES, dtype=scores.dtype, device=scores.device)[since.div(2, rounding_mode="floor") % 3]
        mine = unit == since.div(2 * len(_SHARES), rounding_mode="floor")
        members = torch.zeros_like(scores).scatter_add(0, unit, torch.ones_like(scores)).gather(0, unit)
        order = torch.where(mine, scores, torch.inf).argsort(stable=True).argsort()
        taken = mine & (order < (members * share).floor().clamp_min(1))
        rise = state["loss"] / reference.clamp_min(_SAFE) / len(_SHARES) / members
        rise = state["rise"] + torch.where(probing & lost & mine, rise, 0.0)

        # Cycles of trying.
        since = since - probe
        trial = (since >= 0) & (state["done"] < 0)
        t = since % length
        turn, first = trial & (t == 0), state["cycles"] == 0
        sums, count = state["sum"] + torch.where(trial, scores, 0.0), state["sums"] + trial
        low = lowest(scores, K, unit)
        trying = torch.where(turn, torch.where(first, low, state["waiting"] & ~state["tried"]), state["trying"])
        tried = torch.where(trial, state["tried"] | trying, state["tried"])
        waiting = torch.where(trial, (state["waiting"] | low) & ~tried, state["waiting"])
        over = turn & ~first & (~trying.any() | (state["cycles"] >= self.cycles))
        picks = lowest(sums / count.clamp_min(1) + rise, K, unit)
        picked, done = torch.where(over, picks, state["picked"]), torch.where(over, step, state["done"])

        # A turn restores what was before, and takes this step from there.
        params = {
            name: torch.where(probing, cache[name], torch.where(turn, cache[name] + (value - before[name]), value))
            for name, value in params.items()
        }
        pruning, after = (done >= 0) & (step - done < decay), step - done
        left = torch.where(probing & ~lost & taken, 0.0, torch.ones_like(scores))
        left = torch.where(trial & ~over & trying, remaining(t, length).to(scores.dtype), left)
        left = torch.where(pruning & picked, remaining(after, decay).to(scores.dtype), left)
        new = {
            "cycles": state["cycles"] + turn,
            "done": done,
            "tried": tried,
            "trying": trying,
            "waiting": waiting,
            "reference": reference,
            "rise": rise,
            "sum": sums,
            "sums": count,
            "picked": picked,
            "pruned": torch.where(pruning & (after == decay - 1), picked, state["pruned"]),
            **{_CACHE + name: value for name, value in cache.items()},
        }
        return params, {**state, **new}, left

    def evaluation(self, params: Params, state: State) -> Params:
        # As it would be pruned now.
        sizes = {name: params[name].reshape(len(params[name]), -1).square().sum(1) for name in _names(state)}
        norms = _by_group(sizes, state)
        out = lowest(norms, state[f"{OWN}count"], state[_UNIT], state["picked"])
        return _shrunk(params, torch.where(out, 0.0, torch.ones_like(norms)), state)

    def after_transfer(self, params: Params, state: State) -> tuple[Params, State]:
        like = state[f"{OWN}size"]
        return _shrunk(params, torch.where(state["pruned"], 0.0, torch.ones_like(like)), state), state

    def rebuild(self, module: nn.Module, state: State) -> nn.Module:
        x: Rows = tuple(state[f"{_EXAMPLE}{i}"] for i in range(sum(name.startswith(_EXAMPLE) for name in state)))
        groups = ChannelGroups({name: state[_GROUP + name] for name in _names(state)}, state[_UNIT])
        return without_zero_channels(module, x, groups)


def _materialised(params: Params, context: Context) -> nn.Module:
    """Returns the structure with the task's own numbers, on the CPU."""
    module = copy.deepcopy(context.module)
    named = {**params, **context.model.frozen}
    new = {id(value): nn.Parameter(named[name].cpu().clone()) for name, value in module.named_parameters()}
    buffers = context.model.passed.buffers
    for path, layer in module.named_modules():
        layer._parameters.update({n: new[id(value)] for n, value in layer._parameters.items() if value is not None})
        own = {name: buffers.get(within(path, name)) for name in layer._buffers}
        layer._buffers.update({name: value.cpu().clone() for name, value in own.items() if value is not None})
    return module


def _names(state: State) -> list[str]:
    return [name.removeprefix(_GROUP) for name in state if name.startswith(_GROUP)]


def _by_group(rows: Params, state: State) -> Float[Tensor, " G"]:
    """Returns the sums over each group of what its rows have, [O] each by the parameter's name."""
    G = len(state[_UNIT])
    total = next(iter(rows.values())).new_zeros(G + 1)  # the last for rows without a group
    for name, values in rows.items():
        total = total.scatter_add(0, state[_GROUP + name] % (G + 1), values)
    return total[:G]


def _saliency_of(before: Params, params: Params, state: State) -> Float[Tensor, " G"]:
    weight: Params = {}
    step: Params = {}
    product: Params = {}
    for name in _names(state):
        w, d = (value.reshape(len(value), -1) for value in (before[name], before[name] - params[name]))
        weight[name], step[name], product[name] = w.square().sum(1), d.square().sum(1), (w * d).sum(1)
    own = state[f"{OWN}size"]
    return saliency(_by_group(weight, state), _by_group(step, state), _by_group(product, state), own)


def _shrunk(params: Params, left: Float[Tensor, " G"], state: State) -> Params:
    """Returns the parameters with each group's rows multiplied by what is left of it."""
    left = F.pad(left, (0, 1), value=1.0)
    shrunk = {}
    for name in _names(state):
        rows = left[state[_GROUP + name] % len(left)]
        rows = rows.view(-1, *[1] * (params[name].ndim - 1))
        shrunk[name] = params[name] * rows
    return {**params, **shrunk}
