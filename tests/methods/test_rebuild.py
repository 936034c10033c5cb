"""A method that hands out a smaller network: fitted, saved, loaded, exported."""

import copy
from dataclasses import dataclass
from typing import final

import pytest
import torch
from torch import nn

import kinfold
from kinfold.errors import InputError
from kinfold.methods import Method
from kinfold.models.resizing import resize


@final
@dataclass(frozen=True)
class Half(Method):
    """Trains the first half of the hidden units alone, and hands out a network of these."""

    def start(self, params, context):
        weight = params[f"{names(context.module)[0]}.weight"]
        return {"kept": (torch.arange(len(weight)) < len(weight) // 2).to(weight.dtype)}

    def weights(self, params, state):
        first, second = (name for name in params if name.endswith("weight"))
        bias = first.replace("weight", "bias")
        kept = state["kept"]
        return params | {
            first: params[first] * kept[:, None],
            bias: params[bias] * kept,
            second: params[second] * kept,
        }

    def rebuild(self, module, state):
        first, second = (module.get_submodule(name) for name in names(module))
        kept = state["kept"] > 0
        smaller = copy.deepcopy(module)
        tensors = module.state_dict()
        a, b = names(module)
        tensors[f"{a}.weight"], tensors[f"{a}.bias"] = first.weight[kept], first.bias[kept]
        tensors[f"{b}.weight"] = second.weight[:, kept]
        resize(smaller, tensors)
        smaller.load_state_dict(tensors)
        return smaller


def names(module):
    return [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]


def test_fitted_saved_and_loaded(tmp_path):
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    given = {"tasks": 2, "epochs": 2, "seed": 1, "engine": "sequential", "methods": [Half()], "transfer": "papa"}
    result = kinfold.fit({"name": "mlp", "hidden": [12]}, (x, x[:, :3].argmax(1)), **given, out=tmp_path / "run")
    layers = [layer for layer in result.model.modules() if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in layers] == [6, 3]
    loaded = kinfold.load(tmp_path / "run")
    assert torch.equal(loaded.outputs(x), result.outputs(x))
    assert loaded.rebuilt
    task = result.selected.task  # selected by the scores of what was handed out
    assert result.contenders[task].score == pytest.approx(result.selected.score)
    result.export("safetensors", tmp_path / "out")
    assert torch.equal(kinfold.load(tmp_path / "out").outputs(x), result.outputs(x))


def test_candidates_do_not_average_what_is_cut():
    with pytest.raises(InputError, match="'soup' would average what Half masks"):
        kinfold.fit("mlp", "iris", tasks=2, epochs=1, methods=[Half()], transfer="papa", candidates="soup")


def test_sizes_of_layers():
    with torch.random.fork_rng([]):
        layers = [nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.GRU(6, 2)]
        smaller = [nn.Embedding(3, 2), nn.LayerNorm(2), nn.Linear(2, 3), nn.BatchNorm1d(3)]
        depthwise = nn.Conv1d(6, 6, 3, groups=6), nn.Conv1d(4, 4, 3, groups=4)
    module = nn.Sequential(*layers[:4])
    resize(module, nn.Sequential(*smaller).state_dict())
    assert [str(layer) for layer in module] == [str(layer) for layer in smaller]
    resize(depthwise[0], depthwise[1].state_dict())
    assert str(depthwise[0]) == str(depthwise[1])
    with pytest.raises(InputError, match="is a GRU, whose size cannot be changed"):
        resize(layers[4], {"weight_ih_l0": torch.zeros(6, 5)})
