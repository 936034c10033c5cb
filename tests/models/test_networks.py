"""Every network trains alike on both engines, or falls back; and what each asks of its rows is kept to."""

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

import kinfold
from kinfold.data.base import Dataset, Encoder, Inputs, Target
from kinfold.models import MODELS, build, factory
from kinfold.models.attention import SelfAttention
from kinfold.models.ft_transformer import FeatureTokenizer
from kinfold.models.mobilenetv2 import Block as InvertedResidual
from kinfold.models.resnet18 import Block as ResidualBlock
from kinfold.models.sequences import mean_over_steps, sinusoids
from kinfold.random import generator

LARGE = {"resnet18", "resnet32", "resnet56", "vgg11-bn", "vgg16-bn", "mobilenetv2"}
RECURRENT = {"lstm", "gru"}


class Tensors(Inputs):
    """Rows of one tensor, or of several that become the model's arguments."""

    def __init__(self, *parts):
        self.parts = parts

    def __len__(self):
        return len(self.parts[0])

    def rows(self, index):
        rows = tuple(part[index] for part in self.parts)
        return rows if len(rows) > 1 else rows[0]

    def to(self, device, dtype):
        return Tensors(*(p.to(device, dtype if p.is_floating_point() else p.dtype) for p in self.parts))


@dataclass(frozen=True)
class Passed(Encoder):
    shape: tuple
    told: dict = field(default_factory=dict)
    kind = "passed"

    @property
    def input_shape(self):
        return self.shape

    @property
    def hints(self):
        return self.told

    def encode(self, features):
        return Tensors(*features)

    def program(self):
        raise NotImplementedError

    def spec(self):
        return {}

    @classmethod
    def from_spec(cls, spec):
        raise NotImplementedError


@dataclass(frozen=True)
class Given(Dataset):
    """Tensors as they are, with the hints of a format."""

    hints: Any = None

    def fit(self, rows):
        return Passed(tuple(self.features[0].shape[1:]), self.hints or {})

    def fingerprints(self):
        return np.arange(len(self), dtype=np.uint64)


def noise(*shape):
    return torch.randn(shape, generator=generator(0, "noise"))


ROWS = 20
"""With 2 tasks and a share of 0.2 for validation, 16 to train on: two batches of 8."""


@dataclass(frozen=True)
class Tiny:
    """Rows as small as a network can take, and arguments that make it small and switch dropout off."""

    features: tuple
    arguments: dict = field(default_factory=dict)
    hints: dict = field(default_factory=dict)

    @property
    def shape(self):
        return tuple(self.features[0].shape[1:])

    def build(self, name):
        return factory({"name": name, **self.arguments}, self.shape, 3, self.hints)()

    def dataset(self):
        y = torch.arange(ROWS) % 3
        return Given("tiny", self.features, Target("classification", y, (0, 1, 2)), hints=self.hints)

    def batch(self, rows):
        """The first rows as a model's arguments, in double precision."""
        return tuple(f[:rows].double() if f.is_floating_point() else f[:rows] for f in self.features)


def _series(**arguments):
    lengths = torch.arange(ROWS) % 6 + 7
    mask = (torch.arange(12) < lengths[:, None]).float()
    return Tiny((noise(ROWS, 2, 12) * mask[:, None], mask), arguments)


def _texts(**arguments):
    ids = torch.randint(1, 30, (ROWS, 9), generator=generator(0, "ids"))
    shown = torch.arange(9) < (torch.arange(ROWS) % 9 + 1)[:, None]
    return Tiny((ids * shown,), arguments, {"vocabulary": 30})


IMAGES = Tiny((noise(ROWS, 3, 8, 8),))
TABLE = Tiny((noise(ROWS, 6),), {"dropout": 0.0}, {"widths": [1, 2, 3]})

TINY = {
    "mlp": Tiny((noise(ROWS, 1, 8, 8),), {"hidden": [7]}),
    "lenet5": IMAGES,
    "resnet20": IMAGES,
    "resnet32": IMAGES,
    "resnet56": IMAGES,
    "resnet18": IMAGES,
    "vgg11-bn": IMAGES,
    "vgg16-bn": IMAGES,
    "densenet40": replace(IMAGES, arguments={"depth": 10, "growth": 4}),
    "mobilenetv2": replace(IMAGES, arguments={"dropout": 0.0}),
    "wide-resnet-16-4": replace(IMAGES, arguments={"depth": 10, "widen": 1}),
    "fcn": _series(),
    "inception-time": _series(depth=3),
    "lstm": _series(width=6, layers=2),
    "gru": _texts(width=6),
    "transformer": _series(width=8, heads=2, dropout=0.0),
    "textcnn": _texts(width=6, maps=4, dropout=0.0),
    "tabular-resnet": replace(TABLE, arguments={"width": 8, "dropout": 0.0}, hints={}),
    "ft-transformer": replace(TABLE, arguments={"width": 8, "heads": 2, "attention_dropout": 0.0, "dropout": 0.0}),
}
"""One for every name."""


def test_every_network_is_tried():
    assert set(TINY) == set(MODELS)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in TINY])
def test_a_period_is_the_same_on_both_engines(name):
    tiny = TINY[name]
    one, other = (
        kinfold.fit(
            {"name": name, **tiny.arguments},
            tiny.dataset(),
            tasks=2,
            epochs=1,
            batch_size=8,
            holdout=0,
            precision="float64",
            transfer="none",
            engine=engine,
        )
        for engine in ("sequential", "vectorised")
    )
    notes = [event["message"] for event in other.history if event["event"] == "note"]
    if name in RECURRENT:
        assert other.engine == "sequential"
        assert len(notes) == 1
        assert notes[0].startswith("engine: sequential, since this model cannot be stacked")
    else:
        assert (other.engine, notes) == ("vectorised", [])
    torch.testing.assert_close(one.scores.loss_matrix, other.scores.loss_matrix, rtol=1e-9, atol=1e-12)
    theirs = other.model.state_dict()
    for key, value in one.model.state_dict().items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("block", [ResidualBlock(4, 8), InvertedResidual(4, 4, 6, 1), InvertedResidual(4, 6, 6, 2)])
def test_blocks_of_the_large_networks_stack(block):
    blocks = [copy.deepcopy(block).double().train() for _ in range(2)]
    for each in blocks:
        for p in each.parameters():
            nn.init.normal_(p)
    parameters, buffers = stack_module_state(blocks)
    x = noise(3, 4, 6, 6).double()
    stacked = vmap(lambda p, b: functional_call(block, (p, b), (x,)))(parameters, buffers)
    for t, each in enumerate(blocks):
        torch.testing.assert_close(stacked[t], each(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_gets_a_gradient(name):
    model = TINY[name].build(name).double().train()
    outputs = model(*TINY[name].batch(4))
    assert outputs.shape == (4, 3)
    outputs.square().sum().backward()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2"])
def test_the_form_for_photographs_halves_them_sooner(name):
    sizes = {}
    for side in (63, 64):
        model = build(name, (3, side, side), 2).eval()
        features = model.stem if name == "resnet18" else model.features
        sizes[side] = features(noise(1, 3, side, side)).shape[-1]
        assert model(noise(1, 3, side, side)).shape == (1, 2)
    assert sizes == ({63: 63, 64: 16} if name == "resnet18" else {63: 8, 64: 2})


@pytest.mark.parametrize("side", [(8, 8), (8, 13), (28, 28)])
def test_vgg_takes_images_of_fewer_than_32_pixels(side):
    model = build("vgg11-bn", (1, *side), 3).eval()
    assert model(noise(2, 1, *side)).shape == (2, 3)


@pytest.mark.parametrize("name", ["fcn", "inception-time", "lstm", "gru", "transformer"])
def test_what_stands_in_the_padding_of_a_series_does_not_matter(name):
    arguments = {"depth": 3} if name == "inception-time" else {}
    model = build(name, (2, 12), 3, **arguments).double().eval()
    short = noise(4, 2, 7).double() - 1  # mostly below zero, which a max pool over padding would not be
    padded = torch.cat([short, 100 + noise(4, 2, 5).double()], dim=2)
    mask = (torch.arange(12) < 7).double().expand(4, -1)
    torch.testing.assert_close(model(padded, mask), model(short), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model(short, torch.ones(4, 7, dtype=torch.float64)), model(short))
    assert not torch.allclose(model(padded), model(short))


@pytest.mark.parametrize("name", ["lstm", "gru", "transformer", "textcnn"])
@pytest.mark.parametrize("words", [1, 6])
def test_how_far_a_text_is_padded_does_not_matter(name, words):
    model = build(name, (12,), 3, vocabulary=20).double().eval()
    for p in model.parameters():
        nn.init.normal_(p)  # with the usual start, empty windows of textcnn would hardly show
    short = torch.randint(1, 20, (4, words), generator=torch.Generator().manual_seed(0))
    padded = F.pad(short, (0, 12 - words))
    torch.testing.assert_close(model(padded), model(short), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(model(short), model(short % 19 + 1))


@pytest.mark.parametrize("name", ["lstm", "transformer", "textcnn"])
def test_a_text_of_nothing_but_padding_gives_numbers(name):
    model = build(name, (5,), 2, vocabulary=9)
    outputs = model(torch.zeros(2, 5, dtype=torch.int64))
    outputs.sum().backward()
    assert outputs.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_padding_has_no_gradient():
    model = build("textcnn", (5,), 2, vocabulary=9, dropout=0.0)
    model(torch.tensor([[3, 4, 0, 0, 0]])).sum().backward()
    moved = model.steps.table.weight.grad.abs().sum(1) > 0
    assert moved.nonzero().flatten().tolist() == [3, 4]


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_the_transformer_knows_the_order_of_steps(positions):
    model = build("transformer", (2, 6), 3, width=8, heads=2, positions=positions).double().eval()
    x = noise(4, 2, 6).double()
    assert not torch.allclose(model(x), model(x.flip(-1)))
    assert ("positions" in dict(model.named_parameters())) == (positions == "learned")


def test_sinusoids_are_those_of_the_paper():
    found = sinusoids(torch.zeros(1, 3, 5, dtype=torch.float64))
    for step in range(3):
        for i in range(5):
            angle = torch.tensor(step / 10_000 ** ((i - i % 2) / 5), dtype=torch.float64)
            torch.testing.assert_close(found[step, i], angle.cos() if i % 2 else angle.sin())
    assert sinusoids(torch.zeros(1, 300, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_attention_is_that_of_torch():
    mine, theirs = SelfAttention(8, 2, 0.0).double(), nn.MultiheadAttention(8, 2, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": mine.project.weight,
            "in_proj_bias": mine.project.bias,
            "out_proj.weight": mine.combine.weight,
            "out_proj.bias": mine.combine.bias,
        }
    )
    x = noise(3, 5, 8).double()
    mask = (torch.arange(5) < torch.tensor([[5], [3], [1]])).double()
    torch.testing.assert_close(mine(x), theirs(x, x, x, need_weights=False)[0])
    torch.testing.assert_close(mine(x, mask), theirs(x, x, x, key_padding_mask=mask == 0, need_weights=False)[0])


def test_a_columns_token_is_its_values_row_or_its_number_times_a_vector():
    tokenizer = FeatureTokenizer([1, 3], 4, 5)
    tokens = tokenizer(torch.tensor([[2.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    weight, bias = tokenizer.weight, tokenizer.bias
    torch.testing.assert_close(tokens[0], torch.stack([bias[0], bias[1] + 2 * weight[0], bias[2] + weight[2]]))
    torch.testing.assert_close(tokens[1], bias)  # a value that was not seen


def test_a_table_tells_its_columns_to_the_ft_transformer(tmp_path):
    frame = pd.DataFrame({"size": [1.0, 2.0, 3.0, 4.0] * 5, "colour": ["red", "green", "blue", "red"] * 5})
    data = frame.assign(y=["a", "b"] * 10)
    model = {"name": "ft-transformer", "width": 8, "heads": 2}
    result = kinfold.fit(model, data, target="y", tasks=2, epochs=1, holdout=0, out=tmp_path / "run")
    again = kinfold.load(tmp_path / "run")
    assert result.model.tokens.widths == again.model.tokens.widths == [1, 3]
    torch.testing.assert_close(again.outputs(frame), result.outputs(frame))


def test_the_mean_of_a_fractional_mask_is_weighted():
    x = torch.tensor([[[1.0], [4.0]]])
    assert mean_over_steps(x, torch.tensor([[1.0, 0.5]])).tolist() == [[2.0]]
