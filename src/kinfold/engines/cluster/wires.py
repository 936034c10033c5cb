"""How hosts are asked for parts of a plan, and how answers are told from losses."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, final

import ray
from ray.exceptions import RayError

from kinfold.engines.cluster.actors import Done, Failed, Held, Slot
from kinfold.engines.cluster.packing import unpacked
from kinfold.engines.cluster.placement import LostError, Member
from kinfold.engines.exchange import Handle, Transport


@final
class Wires(Transport):
    """Reaches the engines of shares on their hosts.

    A handle holds the reference to a reference: what a host has computed stays in the store of its node, and another
    host fetches it from there. What comes back here is the reference, and how many bytes it stands for.
    """

    def __init__(self, run: Callable[..., Sequence[Any]], homes: Sequence[Member]):
        super().__init__()
        self._call, self._homes = run, homes
        self._told: list[tuple[Member, Any]] = []

    def get(self, handles: Sequence[Handle]) -> list[Any]:
        all_done([handle.size for handle in handles])
        try:
            held: list[Held] = ray.get([handle.held for handle in handles])
            return [unpacked(one) for one in ray.get([one.reference[0] for one in held])]
        except RayError as error:
            raise LostError from error

    def first(self, handles: Sequence[Handle]) -> Handle:
        answers = {handle.size[1]: handle for handle in handles}
        (ready,), _ = ray.wait([*answers], num_returns=1)
        asked = [reference for _, reference in self._told]
        done = {*ray.wait(asked, num_returns=len(asked), timeout=0)[0]}  # so that what is over is let go of
        over = [told for told in self._told if told[1] in done]
        self._told = [told for told in self._told if told[1] not in done]
        all_done(over)
        return answers[ready]

    def settle(self) -> None:
        """Waits until all that was asked is done; raises what failed."""
        all_done(self._told)

    def _run(self, share: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        given = [argument.held for argument in arguments if isinstance(argument, Handle)]
        slots = itertools.count()
        own = tuple(Slot(next(slots)) if isinstance(argument, Handle) else argument for argument in arguments)
        answer, held = self._call(share, function, own, *given)
        self._told.append((self._homes[share], answer))
        return held, self._told[-1]

    def _bytes(self, sizes: Sequence[Any]) -> list[int]:
        return [checked(member.answer(reference)) for member, reference in sizes]


def checked(answer: Any) -> Any:
    """Returns what a call gave.

    Raises:
        LostError: what it needed had gone with another process.
        Exception: what it raised.
    """
    if isinstance(answer, Failed):
        raise answer.error from RuntimeError(f"in an actor:\n{answer.trace}")
    if not isinstance(answer, Done):
        raise LostError
    return answer.answer


def all_done(asked: Sequence[tuple[Member, Any]]) -> None:
    """Waits for calls; raises the user's own failure rather than what else that led to.

    Raises:
        LostError: a process that was asked, or one that it needed something of, is gone.
    """
    lost: LostError | None = None
    for member, reference in asked:
        try:
            checked(member.answer(reference))
        except LostError as error:
            lost = error
    if lost is not None:
        raise lost
