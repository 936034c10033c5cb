import copy
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from kinfold.errors import InputError
from kinfold.models import MODELS, build, factory
from kinfold.random import generator, seeded

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seeded():
    with seeded(CPU, 0, "models"):
        yield


def count(model):
    return sum(p.numel() for p in model.parameters())


def images(*shape):
    return torch.rand(shape, generator=generator(0, "images"))


@pytest.mark.parametrize(
    ("name", "shape", "outputs", "parameters"),
    [
        ("mlp", (64,), 10, 64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10),
        ("lenet5", (1, 28, 28), 10, 61_706),
        ("lenet5", (1, 32, 32), 10, 61_706),
        ("lenet5", (3, 32, 32), 10, 62_006),
        ("resnet20", (3, 32, 32), 10, 269_722),
        ("resnet32", (3, 32, 32), 10, 464_154),
        ("resnet56", (3, 32, 32), 10, 853_018),
    ],
)
def test_parameters(name, shape, outputs, parameters):
    assert count(build(name, shape, outputs)) == parameters


@pytest.mark.parametrize("side", [(8, 8), (8, 15), (12, 9), (16, 16), (28, 28), (31, 40)])
@pytest.mark.parametrize("name", ["lenet5", "resnet20", "mlp"])
def test_any_image_from_8_pixels(name, side):
    model = build(name, (2, *side), 3).eval()
    x = images(4, 2, *side)
    assert model(x).shape == (4, 3)
    # What the top left pixel holds reaches the outputs: nothing vanished on the way.
    changed = x.clone()
    changed[:, :, 0, 0] += 10
    assert not torch.allclose(model(x), model(changed))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_scoring_and_gradients_under_vmap_equal_one_model_at_a_time(name):
    models = [build(name, (1, 8, 8), 5).double().eval() for _ in range(3)]
    x = images(4, 1, 8, 8).double()
    parameters, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0])

    def loss(parameters, buffers, x):
        return functional_call(skeleton, (parameters, buffers), (x,)).square().mean()

    stacked = vmap(grad(loss), in_dims=(0, 0, None))(parameters, buffers, x)
    scores = vmap(loss, in_dims=(0, 0, None))(parameters, buffers, x)
    for t, model in enumerate(models):
        value = model(x).square().mean()
        value.backward()
        torch.testing.assert_close(scores[t], value, rtol=1e-9, atol=1e-12)
        for key, p in model.named_parameters():
            torch.testing.assert_close(stacked[key][t], p.grad, rtol=1e-9, atol=1e-12)


def test_training_batch_norm_under_vmap():
    models = [build("resnet20", (1, 8, 8), 5).train() for _ in range(2)]
    parameters, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0])
    x = images(4, 1, 8, 8)
    stacked = vmap(lambda p, b: functional_call(skeleton, (p, b), (x,)))(parameters, buffers)
    for t, model in enumerate(models):
        torch.testing.assert_close(stacked[t], model(x), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(buffers["stem.1.running_mean"][t], model.stem[1].running_mean)
        assert buffers["stem.1.num_batches_tracked"][t] == 1


def test_a_stage_of_resnet_starts_with_half_the_pixels_and_zero_maps():
    block = build("resnet20", (1, 8, 8), 5).stages[1][0].eval()
    for p in block.residual.parameters():
        nn.init.zeros_(p)
    x = images(1, 16, 8, 8)
    out = block(x)
    assert out.shape == (1, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].abs().sum() + out[:, 24:].abs().sum() == 0


def test_mlp_options():
    model = build("mlp", (1, 2, 2), 3, hidden=[5, 4], dropout=0.5, batch_norm=True)
    layers = [type(layer).__name__ for layer in model]
    assert layers == ["Flatten", *["Linear", "BatchNorm1d", "ReLU", "Dropout"] * 2, "Linear"]
    assert count(build("mlp", (3,), 2, hidden=[])) == 8


def test_lenet5_options():
    assert any(isinstance(layer, nn.Tanh) for layer in build("lenet5", (1, 8, 8), 3, activation="tanh").modules())


@pytest.mark.parametrize(
    ("name", "shape", "arguments", "message"),
    [
        ("lenet", (1, 8, 8), {}, "model: unknown name 'lenet', did you mean 'lenet5'"),
        ("lenet5", (64,), {}, r"lenet5 needs images of shape \[channels, height, width\].*\[64\]"),
        ("lenet5", (1, 8, 7), {}, "8 pixels a side or more"),
        ("resnet20", (8, 8), {}, "resnet20 needs images"),
        ("resnet56", (1, 3, 3), {}, "resnet56 needs images .* 4 pixels"),
        ("mlp", (4,), {"hiden": [3]}, "model mlp: unknown name 'hiden', did you mean 'hidden'"),
        ("mlp", (4,), {"hidden": [3, 0]}, r"hidden is \[3, 0\]"),
        ("mlp", (4,), {"hidden": 5}, r"model mlp: cannot be built with hidden=5 \("),
        ("mlp", (4,), {"dropout": 1.0}, r"dropout is 1\.0"),
        ("resnet20", (1, 8, 8), {"depth": 21}, "depth is 21; give 6n"),
    ],
)
def test_bad_choices(name, shape, arguments, message):
    with pytest.raises(InputError, match=message):
        build(name, shape, 3, **arguments)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "kf_nets.py").write_text(
        "import torch\n"
        "def net():\n    return torch.nn.Linear(2, 3)\n"
        "def sized(width):\n    return torch.nn.Linear(2, width)\n"
        "def broken():\n    raise KeyError('w')\n"
        "def text():\n    return 'net'\n"
        "number = 3\n"
    )
    yield
    sys.modules.pop("kf_nets", None)


@pytest.mark.parametrize(
    ("spec", "parameters"),
    [
        ("mlp", 2 * 128 + 128 + 128 * 128 + 128 + 128 * 3 + 3),
        ({"name": "mlp", "hidden": [4]}, 2 * 4 + 4 + 4 * 3 + 3),
        ("kf_nets:net", 9),
        ({"class_path": "kf_nets.sized", "init_args": {"width": 5}}, 15),
        ({"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 1}}, 3),
        ({"class_path": "kf_nets:net", "init_args": None}, 9),
    ],
)
def test_factories_build_a_new_model_each_time(mine, spec, parameters):
    make = factory(spec, (2,), 3)
    first, second = make(), make()
    assert first is not second
    assert count(first) == count(second) == parameters
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mpl", "model: unknown name 'mpl', did you mean 'mlp'"),
        ({"name": "mpl"}, "model: unknown name 'mpl'"),
        ("kf_absent:net", "model: 'kf_absent:net' cannot be imported"),
        ("kf_nets:absent", "has no attribute 'absent'"),
        ("kf_nets:number", "is a int"),
        ({"class_path": "kf_nets.net", "init_arg": {}}, "unknown name 'init_arg', did you mean 'init_args'"),
        ({"init_args": {}}, "neither name nor class_path"),
    ],
)
def test_bad_specs_are_told_before_anything_is_built(mine, spec, message):
    with pytest.raises(InputError, match=message):
        factory(spec, (2,), 3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kf_nets:broken", r"model: 'kf_nets:broken' failed \(KeyError: 'w'\)"),
        ("kf_nets:text", "model: 'kf_nets:text' returned a str"),
        ({"class_path": "kf_nets:sized", "init_args": {"wide": 5}}, "failed .TypeError: .*'wide'"),
    ],
)
def test_factories_that_give_no_model(mine, spec, message):
    with pytest.raises(InputError, match=message):
        factory(spec, (2,), 3)()
