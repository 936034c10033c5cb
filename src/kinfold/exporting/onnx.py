"""ONNX: a program that onnxruntime and others run without Python.

The exporter is `torch.onnx` over a `torch.export` graph; see https://onnx.ai for the format.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kinfold import files
from kinfold.errors import InputError, RunError
from kinfold.exporting.base import ABOUT, Finished, Json, checked, description, quiet, shortened, traced

_MAX_BYTES = 2_000_000_000  # of a file of protocol buffers, and so of a model in one file
_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")


def onnx_program(finished: Finished, name: str, features: Any) -> tuple[bytes, Json]:
    """Returns the content of an .onnx file, and its description; checked with onnxruntime on real rows.

    A model in float64 is written in float32: runtimes have few operations in double precision.

    Args:
        finished: the run.
        name: where the rows are from.
        features: raw rows to check it on.

    Raises:
        InputError: onnx, onnxscript or onnxruntime is not installed, the model is too large, or the rows do not fit.
        RunError: the model cannot become a program, or the program's outputs differ from the model's.
    """
    onnx, onnxruntime = _packages()
    size = sum(tensor.numel() * tensor.element_size() for tensor in finished.model.state_dict().values())
    if size > _MAX_BYTES:
        raise InputError(f"export: the model has {size:,} bytes, and an ONNX file holds 2 GB; choose safetensors.")
    program = traced(finished, name, features, dtype=torch.float32)
    names = [port.name for port in program.ports]
    try:
        with quiet(), _silent():
            found = torch.onnx.export(
                program.graph, (), input_names=names, output_names=finished.output_names, dynamo=True, verbose=False
            )
        assert found is not None  # with dynamo it gives a program
        model = found.model_proto
        _name_batch(model)
        _keep_padding(onnx, model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone: its warnings are of unused initialisers and the like
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the user's model may do what ONNX has no operation for
        raise RunError(
            f"export: {type(finished.model).__name__} cannot become ONNX ({shortened(error)}); choose torch.export or "
            "safetensors."
        ) from error

    def run(tensors: tuple[Tensor, ...]) -> list[Any]:
        values = zip(names, tensors, strict=True)
        outputs: list[Any] = session.run(None, {name: tensor.numpy() for name, tensor in values})
        return outputs

    about = description(finished, program, "onnx", checked(finished, program.rows, run, "the ONNX program"))
    onnx.helper.set_model_props(model, {ABOUT: files.json_line(about)})
    model.doc_string = "Exported by Kinfold; the metadata 'kinfold' says what goes in and what comes out."
    content: bytes = model.SerializeToString()
    return content, about


def _packages() -> tuple[ModuleType, ModuleType]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # which torch's exporter needs
    except ImportError as error:
        raise InputError(
            f"export: the format onnx needs {error.name}; install it by: pip install 'kinfold[onnx]'."
        ) from None
    return onnx, onnxruntime


def _name_batch(model: Any) -> None:
    """Calls the number of rows `batch`, and not after a symbol of the tracer's."""
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == symbol:
                dimension.dim_param = "batch"


def _keep_padding(onnx: ModuleType, model: Any) -> None:
    """Puts a step without effect between padding with zeros and a maximum over windows.

    onnxruntime (1.31) merges the two, and then pads with -infinity: the merged maxima of negative numbers are wrong.
    """
    padded = {node.output[0] for node in model.graph.node if node.op_type == "Pad"}
    for number, node in reversed(list(enumerate(model.graph.node))):
        if node.op_type == "MaxPool" and node.input[0] in padded:
            bound, kept = f"{node.output[0]}_bound", f"{node.output[0]}_padded"
            lowest = onnx.helper.make_tensor(bound, onnx.TensorProto.FLOAT, [], [torch.finfo(torch.float32).min])
            model.graph.initializer.append(lowest)
            model.graph.node.insert(number, onnx.helper.make_node("Max", [node.input[0], bound], [kept]))
            node.input[0] = kept


@contextmanager
def _silent() -> Iterator[None]:
    """Leaves out what the exporter logs below errors: optimisations not made, packages that are not there."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
