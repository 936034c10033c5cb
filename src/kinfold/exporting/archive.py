"""torch.export: a program that PyTorch loads without the model's code, `.pt2`.

The archive is a zip of JSON (the graph), raw numbers (the weights) and the description. The one pickle that
`torch.export.save` would put into it, the example inputs, is left out, and loading one without it unpickles nothing.
"""

import io
import json
import zipfile
from typing import Any

import torch
from torch import Tensor

from kinfold import files
from kinfold.errors import RunError
from kinfold.exporting.base import ABOUT, Finished, Json, checked, description, quiet, traced


def torch_program(finished: Finished, name: str, features: Any) -> tuple[bytes, Json]:
    """Returns the content of a .pt2 file, and its description; checked on real rows after loading it.

    Args:
        finished: the run.
        name: where the rows are from.
        features: raw rows to check it on.

    Raises:
        InputError: the rows do not fit.
        RunError: the model cannot become a program, needs a pickle, or the program's outputs differ from the model's.
    """
    program = traced(finished, name, features)
    graph = _written(program.graph, "")

    def run(tensors: tuple[Tensor, ...]) -> list[Any]:
        with torch.no_grad():
            return [output.numpy() for output in loaded(*tensors)]

    with quiet():
        loaded = torch.export.load(io.BytesIO(graph)).module()
    about = description(finished, program, "torch.export", checked(finished, program.rows, run, "the program"))
    return _written(program.graph, files.json_line(about)), about


def _written(graph: torch.export.ExportedProgram, about: str) -> bytes:
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(graph, buffer, extra_files={f"{ABOUT}.json": about})
    content = buffer.getvalue()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.namelist():
            if member.endswith("_config.json") and any(
                each["use_pickle"] for each in json.loads(archive.read(member))["config"].values()
            ):
                raise RunError("export: the model has tensors of a class of their own, which could only be pickled.")
    return content
