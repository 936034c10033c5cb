"""A cost model of a run among actors: what every plan kind moves, and how long a period takes.

Closed forms, from what a plan must move if nobody holds all tasks' models: each actor holds a share of neighbouring
tasks, a donor's model goes once to a share that needs it, and a mean goes up a tree of the shares and to all of them.
Where a plan is drawn at random, these are expectations over the draws.

Legend: T tasks, A actors, m tasks of one share, P parameters, M = P · bytes of a number, what a model weighs when sent,
s numbers that the optimizer keeps for each parameter, p share of tasks that try a transfer, a share of tries that are
accepted, N rows, C outputs.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """A run, as far as its traffic goes.

    Attributes:
        tasks: T.
        actors: A.
        parameters: P of one model.
        number_bytes: of a parameter where a whole model, or a sum of models, is sent: 4, or less with a codec.
        raw_bytes: of a number that is sent as it is: a layer's, one drawn by itself, or the optimizer's.
        slots: s, 1 for momentum, 2 for Adam.
        tries: p; AMTO begins with 0.375.
        accepted: a.
        taken: expected share of the numbers that a crossover takes.
        shuffled: share of the numbers that change places (`shuffle`: p of the first layer, falling to 0 of the last).
        donors: others that enter a mixture with weights of its own.
        rows: N that are predicted for teaching.
        outputs: C.
    """

    tasks: int
    actors: int
    parameters: float
    number_bytes: float = 4.0
    raw_bytes: float = 4.0
    slots: float = 1.0
    tries: float = 0.375
    accepted: float = 0.5
    taken: float = 0.5
    shuffled: float = 0.005
    donors: int = 2
    rows: int = 50_000
    outputs: int = 10

    @property
    def shares(self) -> list[int]:
        """How many tasks each actor holds, as engines share them out."""
        ends = [round(i * self.tasks / self.actors) for i in range(self.actors + 1)]
        return [end - begin for begin, end in itertools.pairwise(ends)]

    @property
    def model(self) -> float:
        """M, bytes."""
        return self.parameters * self.number_bytes

    @property
    def raw_model(self) -> float:
        """Bytes of as many numbers as a model has, sent as they are."""
        return self.parameters * self.raw_bytes


@dataclass(frozen=True)
class Volume:
    """What carrying out one plan moves.

    Attributes:
        between: bytes that go from one share to another, in all.
        driver: bytes that the driver takes in and gives out.
        hops: messages that must follow one another.
        carried: bytes that each hop carries where they follow one another (a tree), else 0: then all shares take in
            their part of `between` at the same time.
    """

    between: float = 0.0
    driver: float = 0.0
    hops: int = 0
    carried: float = 0.0


def mean(of: Setting) -> Volume:
    """θ_t ← (1 − c) θ_t + c · mean: partial sums up a tree of the shares, the mean to all of them: 2 (A − 1) M."""
    return Volume(2 * (of.actors - 1) * of.model, hops=2 * depth(of.actors), carried=of.model)


def copy(of: Setting) -> Volume:
    """Each task takes one other's model (a copy, a blend, a binary crossover) with probability p (see `taking`)."""
    return taking(of, whole=of.tries, part=0.0)


def crossover(of: Setting) -> Volume:
    """Each task takes some layers, or numbers, of one other with probability p (see `taking`)."""
    return taking(of, whole=0.0, part=of.tries)


def amto(of: Setting) -> Volume:
    """AMTO with its three forms equally likely: two parts copy or blend, one part crossover."""
    return taking(of, whole=of.tries * 2 / 3, part=of.tries / 3)


def taking(of: Setting, whole: float, part: float) -> Volume:
    """Each task takes another's whole model with one probability, and with another the share `taken` of its numbers.

    A share of m tasks is sent what any of them needs of a donor of another share, and once. With the probabilities
    that one task needs a certain donor's w = whole / (T − 1), and a certain number of it c = part · taken / (T − 1),
    if need be without the rest,

        Σ_shares (T − m) { [1 − (1 − w)^m] M + [(1 − w)^m − (1 − w − c)^m] P raw + [1 − (1 − a (w + c))^m] s P raw },

    the last for the moments that follow what was accepted.
    """
    if of.tasks == 1:
        return Volume()
    w, c, between = whole / (of.tasks - 1), part * of.taken / (of.tasks - 1), 0.0
    for m in of.shares:
        models, numbers = 1 - (1 - w) ** m, (1 - w) ** m - (1 - w - c) ** m
        moments = of.slots * (1 - (1 - of.accepted * (w + c)) ** m)
        between += (of.tasks - m) * (models * of.model + (numbers + moments) * of.raw_model)
    return Volume(between, hops=4)


def mixture(of: Setting) -> Volume:
    """Every task takes weights of its own of k others: the fewer of donors and of partial combinations.

    From a share of m′ tasks to one of m go, in expectation and as far as that is the least of the two in all draws,

        min( m′ [1 − (1 − k / (T − 1))^m],  m [1 − C(T − 1 − m′, k) / C(T − 1, k)] )  models,

    donors that any of the m tasks needs, or tasks that need any of the m′ donors.
    """
    T, k = of.tasks, min(of.donors, of.tasks - 1)
    models = 0.0
    for i, there in enumerate(of.shares):
        for j, here in enumerate(of.shares):
            if i != j:
                needed = there * (1 - (1 - k / (T - 1)) ** here)
                combined = here * (1 - math.comb(T - 1 - there, k) / math.comb(T - 1, k))
                models += min(needed, combined)
    return Volume(models * of.model, hops=2)


def shuffle(of: Setting) -> Volume:
    """A share of the numbers is permuted over all tasks: each goes, as it is, to where it then belongs.

    Σ_shares m (T − m) / T · shuffled · P · raw
    """
    moved = sum(m * (of.tasks - m) for m in of.shares) / of.tasks
    return Volume(moved * of.shuffled * of.raw_model, hops=2)


def median(of: Setting) -> Volume:
    """Each share finds the medians of a slice of the numbers, or is sent all members: the less of the two.

    To k shares that take them, by slices T (1 − 1 / A) + k (1 − 1 / A) times as many numbers as a model has, whole
    k T (1 − 1 / A). Moments have their medians, for shares in which a task accepted: Σ_shares 1 − (1 − a)^m.
    """
    A, T = of.actors, of.tasks

    def models(takers: float) -> float:
        return min(T + takers, takers * T) * (1 - 1 / A)

    accepting = sum(1 - (1 - of.accepted) ** m for m in of.shares)
    return Volume((models(A) + of.slots * models(accepting)) * of.raw_model, hops=8)


def teach(of: Setting) -> Volume:
    """Predictions to the driver and soft targets back, T N C numbers each way; no parameters."""
    return Volume(driver=2 * of.tasks * of.rows * of.outputs * of.raw_bytes, hops=2)


def nothing(of: Setting) -> Volume:
    """Restarts are drawn where they are needed, options are a few numbers."""
    del of
    return Volume()


PLANS: Mapping[str, Callable[[Setting], Volume]] = {
    "mean": mean,
    "elastic": mean,  # the sum of the pulls on the centre goes by the tree
    "copy": copy,
    "crossover": crossover,
    "amto": amto,
    "mixture": mixture,
    "shuffle": shuffle,
    "median": median,
    "teach": teach,
    "restart": nothing,
}


@dataclass(frozen=True)
class Cadence:
    """How often a rule acts: every so many steps, or every so many periods."""

    plan: str
    steps: int | None = None
    periods: int = 1

    def per_period(self, steps: int) -> float:
        """Returns how many plans are carried out in a period of so many steps, on average."""
        return 1 / self.periods if self.steps is None else steps / self.steps


RULES: Mapping[str, Cadence] = {
    "papa": Cadence("mean", steps=10),
    "elastic": Cadence("elastic", steps=10),
    "shuffle": Cadence("shuffle", steps=10),
    "papa-all": Cadence("mean", periods=5),
    "amto": Cadence("amto"),
    "merge-median": Cadence("median", periods=5),
    "teach": Cadence("teach"),
}
"""The rules with their defaults."""


@dataclass(frozen=True)
class Machine:
    """What things cost where a run is.

    Attributes:
        store: bytes a second, from one actor to another on the same node: written to the object store, and read.
        network: bytes a second that a node takes in from others.
        latency: seconds of one message: a call of an actor, and the answer.
        driver: bytes a second that the driver takes in, works on and gives out.
        step: seconds of one task's training step besides what grows with the model.
        rate: parameters times rows of a batch that an actor trains in a second.
        actors_per_node: that share a node's network.
    """

    store: float
    network: float
    latency: float
    driver: float
    step: float
    rate: float
    actors_per_node: int = 1


def compute_seconds(of: Setting, machine: Machine, steps: int, batch: int) -> float:
    """Returns the seconds in which the actor with the most tasks trains each of them for so many steps."""
    return max(of.shares) * steps * (machine.step + of.parameters * batch / machine.rate)


def exchange_seconds(volume: Volume, of: Setting, machine: Machine) -> float:
    """Returns the seconds in which a plan is carried out, the fastest and the slowest link being alike otherwise.

    What goes up and down a tree passes hop by hop, first within nodes and then between them. Else each node takes in
    its part, what comes from its own actors through the object store, the rest by the network.
    """
    A, G = of.actors, min(of.actors, machine.actors_per_node)
    seconds = volume.hops * machine.latency + volume.driver / machine.driver
    if A == 1:
        return seconds
    if volume.carried:
        within = 2 * depth(G)
        return seconds + volume.carried * (within / machine.store + (volume.hops - within) / machine.network)
    each, outside = volume.between / A, (A - G) / (A - 1)
    return seconds + each * (1 - outside) / machine.store + G * each * outside / machine.network


def rule_seconds(rule: str, of: Setting, machine: Machine, steps: int) -> float:
    """Returns the seconds that a rule's exchanges take in a period of so many steps."""
    cadence = RULES[rule]
    return cadence.per_period(steps) * exchange_seconds(PLANS[cadence.plan](of), of, machine)


def depth(count: int) -> int:
    """Returns the levels of a binary tree over so many leaves: ⌈log₂ count⌉."""
    return max(0, count - 1).bit_length()
