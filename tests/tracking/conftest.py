from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kinfold
from kinfold.checkpoint import Checkpoints

SMALL: dict[str, Any] = {
    "model": {"name": "mlp", "hidden": [8]},
    "tasks": 3,
    "epochs": 4,
    "batch_size": 16,
    "transfer": {"name": "amto", "p_low": 1.0, "p_high": 1.0},
}


class StoppedError(Exception):
    """Stands for the end of the process."""


def stop_at(period: int, error: type[BaseException]) -> Callable[[Mapping[str, Any]], None]:
    def listen(event: Mapping[str, Any]) -> None:
        if event["event"] == "period" and event["period"] == period:
            raise error

    return listen


def _rows() -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    x = draws.normal(size=(90, 4)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] > 0).astype(int) + (x[:, 2] > 0.5)


@pytest.fixture
def track() -> Callable[..., kinfold.Result]:
    """A small run, tracked."""

    def run(tracking: Any, out: Path | None, **changes: Any) -> kinfold.Result:
        return kinfold.fit(data=_rows(), tracking=tracking, out=out, **{"listen": ignore, **SMALL, **changes})

    return run


@pytest.fixture
def stopped(track: Callable[..., kinfold.Result], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Stops a run in its third period, with a checkpoint of the first one alone: trackers know more than that."""

    def run(tracking: Any, out: Path, error: type[BaseException] = KeyboardInterrupt, **changes: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Checkpoints, "due", lambda self: not list(out.rglob("period-*")))
            with pytest.raises(error):
                track(tracking, out, listen=stop_at(3, error), **changes)

    return run


def ignore(event: Mapping[str, Any]) -> None:
    """A listener, so that nothing is logged."""
