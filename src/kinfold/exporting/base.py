"""What is exported: a model with its fitted preprocessing as one tensor program, and what is said of it.

Legend: N rows, C classes or outputs.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from kinfold._version import __version__
from kinfold.data.base import Encoder, Label
from kinfold.data.programs import Port
from kinfold.errors import RunError
from kinfold.importing import one_line

Json: TypeAlias = dict[str, Any]

TOLERANCE = 1e-5
"""How far what was written may be from the model, relative to the greatest of the model's outputs."""

ABOUT = "kinfold"
"""Under this name an ONNX file's metadata, and with `.json` a torch.export archive, hold the description."""


@dataclass(frozen=True)
class Finished:
    """A finished run's model, and what is known of it.

    Attributes:
        model: in eval mode, on the CPU.
        encoder: the fitted preprocessing.
        labels: class c as the user wrote it; None for regression.
        outputs: the model's raw outputs for raw features.
        about: what `model.json` says.
        said: what `result.json` says.
        config: what `config.yaml` says.
        history: the events of `history.jsonl`.
    """

    model: nn.Module
    encoder: Encoder
    labels: tuple[Label, ...] | None
    outputs: Callable[[Any], Tensor]
    about: Json
    said: Json
    config: Json
    history: Sequence[Json]

    def tensors(self) -> dict[str, Tensor]:
        """Returns the model's parameters and buffers by name."""
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    @property
    def output_names(self) -> tuple[str, ...]:
        """What the outputs of a program are called."""
        return ("values",) if self.labels is None else ("logits", "probabilities")


@final
class Predictor(nn.Module):
    """A model behind its preprocessing: (logits [N, C], probabilities [N, C]), or (values [N, C],).

    Args:
        preprocess: from the tensors of the ports to what the model is called with.
        model: the model.
        classifies: whether there are probabilities.

    Example:
        >>> logits, probabilities = Predictor(nn.Identity(), nn.Identity(), True)(torch.tensor([[0.0, 0.0]]))
        >>> probabilities
        tensor([[0.5000, 0.5000]])
    """

    def __init__(self, preprocess: nn.Module, model: nn.Module, classifies: bool):
        super().__init__()
        self.preprocess, self.model, self.classifies = preprocess, model, classifies
        floating = (p.dtype for p in model.parameters() if p.is_floating_point())
        self.dtype = next(floating, torch.float32)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs for a tensor [N, …] of each port."""
        rows = self.preprocess(*tensors)
        each = rows if isinstance(rows, tuple) else (rows,)
        outputs = self.model(*(row.to(self.dtype) if row.is_floating_point() else row for row in each))
        if outputs.ndim == 1:
            outputs = outputs[:, None]
        return (outputs, torch.softmax(outputs, 1)) if self.classifies else (outputs,)


@dataclass(frozen=True)
class Rows:
    """Real rows, by which a program is drawn up and checked.

    Attributes:
        name: where they are from.
        tensors: [N, …] for each port.
        expected: [N, C] the model's outputs.
    """

    name: str
    tensors: tuple[Tensor, ...]
    expected: Float[Tensor, "N C"]


@dataclass(frozen=True)
class Traced:
    """A model with its preprocessing as a graph of tensor operations.

    Attributes:
        graph: with any number of rows.
        ports: its inputs.
        preprocessing: how to come by their tensors, as JSON values.
        rows: by which it is to be checked.
    """

    graph: torch.export.ExportedProgram
    ports: tuple[Port, ...]
    preprocessing: Mapping[str, Any]
    rows: Rows


def traced(finished: Finished, name: str, features: Any, dtype: torch.dtype | None = None) -> Traced:
    """Returns the model's program, drawn up by calling it with real rows.

    Args:
        finished: the run.
        name: where the rows are from.
        features: some rows, raw, labelled or not.
        dtype: of the model's numbers; default as they are.

    Raises:
        InputError: the rows do not fit.
        RunError: the model, or the encoder, does something that no such program can hold.
    """
    program = finished.encoder.program()
    rows = Rows(name, program.tensors(features), finished.outputs(features))
    # Its own copy: whatever tracing does to modules, the result keeps its model.
    model = copy.deepcopy(finished.model)
    predictor = Predictor(program.module, model if dtype is None else model.to(dtype), finished.labels is not None)
    # Of one row or none, a graph would be drawn up for that number alone.
    few = tuple(tensor[torch.arange(2) % len(tensor)] for tensor in rows.tensors)
    batch = torch.export.Dim("batch")
    try:
        with quiet():
            graph = torch.export.export(predictor.eval(), few, dynamic_shapes=(tuple({0: batch} for _ in few),))
    except Exception as error:  # the user's model, under a tracer, may raise anything
        raise RunError(
            f"export: {type(finished.model).__name__} cannot become a program ({shortened(error)}); it must not choose "
            "its way by values; the format safetensors holds any model."
        ) from error
    graph.example_inputs = None  # which would be written as a pickle
    return Traced(graph, program.ports, program.about, rows)


def checked(finished: Finished, rows: Rows, run: Callable[[tuple[Tensor, ...]], Sequence[Any]], what: str) -> Json:
    """Returns how far a program's outputs are from the model's; one row and all others are given to it apart.

    Args:
        finished: the run.
        rows: what it is checked on.
        run: from the ports' tensors to the program's outputs.
        what: the program is, for messages.

    Raises:
        RunError: it fails, or differs by more than `TOLERANCE` relative to the greatest output.
    """
    count = len(rows.expected)
    parts = [slice(0, 1), slice(1, count)] if count > 1 else [slice(0, 1)]
    try:
        outputs = [run(tuple(tensor[part] for tensor in rows.tensors)) for part in parts]
    except Exception as error:  # a runtime may refuse a program in its own ways
        raise RunError(f"export: {what} cannot be run ({shortened(error)}); nothing was written.") from error
    found = [torch.from_numpy(np.concatenate([np.asarray(each) for each in one])) for one in zip(*outputs, strict=True)]
    expected = [rows.expected.double()]
    if finished.labels is not None:
        expected.append(torch.softmax(expected[0], 1))
    scales = [float(one.abs().max()) or 1.0 for one in expected]
    apart = [
        float((got.double() - wanted).abs().max()) / scale
        for got, wanted, scale in zip(found, expected, scales, strict=True)
    ]
    for name, difference in zip(finished.output_names, apart, strict=True):
        if not difference <= TOLERANCE:
            raise RunError(
                f"export: {what} differs from the model by {difference:.1e} of the greatest of its {name} on "
                f"{count} rows of {rows.name} ({TOLERANCE:.0e} may be); nothing was written."
            )
    return {"rows": count, "of": rows.name, "relative_difference": max(apart)}


def description(finished: Finished, program: Traced, format_name: str, found: Json) -> Json:
    """Returns what is written beside a program, and into it."""
    width = int(program.rows.expected.shape[1])
    return {
        "kinfold": __version__,
        "format": format_name,
        "task": finished.about["target"]["kind"],
        "target": finished.about["target"]["name"],
        "labels": None if finished.labels is None else list(finished.labels),
        "inputs": [
            {"name": p.name, "shape": ["batch", *p.shape], "type": str(p.dtype).removeprefix("torch."), "what": p.what}
            for p in program.ports
        ],
        "outputs": [{"name": name, "shape": ["batch", width]} for name in finished.output_names],
        "preprocessing": dict(program.preprocessing),
        "checked": found,
        "estimate": finished.said["estimate"],
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves out what torch's exporters warn of and what is none of the user's concern."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export", UserWarning)
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
        yield


def shortened(error: BaseException) -> str:
    """Returns an error's line, cut to what a line bears."""
    text = one_line(error)
    return text if len(text) <= 300 else text[:300] + "…"
