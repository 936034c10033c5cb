import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from kinfold.cli import main
from kinfold.errors import InputError
from kinfold.models import MODELS, build, factory
from kinfold.random import generator

DOCS = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


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
        # As published, or as the authors' code counts them.
        ("resnet18", (3, 32, 32), 10, 11_173_962),
        ("resnet18", (3, 224, 224), 1000, 11_689_512),
        ("vgg11-bn", (3, 224, 224), 1000, 132_868_840),
        ("vgg16-bn", (3, 224, 224), 1000, 138_365_992),
        ("vgg11-bn", (3, 32, 32), 10, 9_231_114),
        ("vgg16-bn", (3, 32, 32), 10, 14_728_266),
        ("densenet40", (3, 32, 32), 10, 1_019_722),
        ("mobilenetv2", (3, 224, 224), 1000, 3_504_872),
        ("mobilenetv2", (3, 32, 32), 10, 2_236_682),
        ("wide-resnet-16-4", (3, 32, 32), 10, 2_748_890),
        ("inception-time", (1, 500), 2, 420_192 + 2 * 129),
        # With its convolutions' 512 biases, which batch norm cancels: 264,704.
        ("fcn", (1, 500), 2, 264_704 - 512 + 2 * 129),
        # By hand: what each layer has, weights and biases.
        ("lstm", (3, 20), 5, 4 * 128 * (3 + 128 + 2) + 129 * 5),
        ("gru", (3, 20), 5, 3 * 128 * (3 + 128 + 2) + 129 * 5),
        ("transformer", (3, 20), 5, 4 * 128 + 2 * (4 * 129 * 128 + 129 * 512 + 513 * 128 + 512) + 256 + 129 * 5),
        ("tabular-resnet", (8,), 1, 9 * 192 + 2 * (384 + 193 * 384 + 385 * 192) + 384 + 193),
        ("ft-transformer", (8,), 1, 8 * 192 + 9 * 192 + 3 * (4 * 193 * 192 + 193 * 512 + 257 * 192 + 768) - 384 + 577),
    ],
)
def test_parameters(name, shape, outputs, parameters):
    with torch.device("meta"):
        assert count(build(name, shape, outputs)) == parameters


def test_textcnn_has_the_parameters_of_the_paper():
    with torch.device("meta"):
        model = build("textcnn", (64,), 2, vocabulary=1000)
    assert count(model) == 1000 * 300 + (3 + 4 + 5) * 300 * 100 + 300 + 301 * 2


def test_the_command_line_lists_them(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : len(MODELS) + 1]] == list(MODELS)
    assert "vgg16-bn          138,365,992   3x224x224     1000  images        Simonyan, Zisserman 2015" in lines


def test_the_documented_table_is_true():
    for name, structure in MODELS.items():
        row = next(line for line in DOCS.splitlines() if line.startswith(f"| `{name}` |"))
        assert structure.paper in row
        assert f"{structure.parameters():,} at {'×'.join(map(str, structure.shape))}" in row


@pytest.mark.parametrize("side", [(8, 8), (8, 15), (12, 9), (16, 16), (28, 28), (31, 40)])
@pytest.mark.parametrize("name", ["lenet5", "resnet20", "mlp", "densenet40"])
def test_any_image_from_8_pixels(name, side):
    model = build(name, (2, *side), 3).eval()
    x = images(4, 2, *side)
    assert model(x).shape == (4, 3)
    # What the top left pixel holds reaches the outputs: nothing vanished on the way.
    changed = x.clone()
    changed[:, :, 0, 0] += 10
    assert not torch.allclose(model(x), model(changed))


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
        ("resnet18", (64,), {}, "resnet18 needs images"),
        ("vgg11-bn", (1, 7, 7), {}, "vgg11-bn needs images .* 8 pixels"),
        ("vgg11-bn", (1, 8, 8), {"depth": 13}, "model vgg: depth: unknown name 13"),
        ("densenet40", (1, 8, 8), {"depth": 41}, "depth is 41; give 3n"),
        ("densenet40", (1, 8, 8), {"growth": 0}, "densenet40: growth is 0"),
        ("wide-resnet-16-4", (1, 8, 8), {"depth": 17}, "depth is 17; give 6n"),
        ("mobilenetv2", (3, 8, 8), {"dropout": 1}, "mobilenetv2: dropout is 1"),
        ("fcn", (40,), {}, r"fcn needs series of shape \[channels, steps\]; the rows have shape \[40\]"),
        ("inception-time", (1, 40), {"depth": 0}, "inception-time: depth is 0"),
        ("lstm", (40,), {}, "lstm needs series"),
        ("gru", (1, 40), {"vocabulary": 9}, r"gru needs rows of token ids.*\[1, 40\] and vocabulary 9"),
        ("textcnn", (40,), {}, "textcnn needs rows of token ids.* vocabulary None"),
        ("textcnn", (40,), {"vocabulary": 1}, "textcnn: vocabulary is 1"),
        ("textcnn", (40,), {"vocabulary": 9, "lengths": [3, 0]}, "textcnn: lengths is 0"),
        ("textcnn", (40,), {"vocabulary": 9, "lengths": []}, "textcnn: lengths is 0"),
        ("transformer", (1, 40), {"heads": 3}, "width 128 cannot be shared by 3 heads"),
        ("tabular-resnet", (1, 4), {}, r"tabular-resnet needs rows of a table, shape \[columns\]"),
        ("ft-transformer", (4,), {"widths": [1, 2]}, r"widths are \[1, 2\], and a row has 4 numbers"),
        ("ft-transformer", (4,), {"residual_dropout": -0.1}, r"residual_dropout is -0\.1"),
        ("mlp", (4,), {"hiden": [3]}, "model.hiden: unknown name 'hiden', did you mean 'hidden'"),
        ("mlp", (4,), {"hidden": [3, 0]}, r"hidden is \[3, 0\]"),
        ("mlp", (4,), {"hidden": 5}, "model.hidden: is 5; give a list, each a whole number"),
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
        (
            {"class_path": "kf_nets:sized", "init_args": {"wide": 5}},
            "model.init_args.wide: unknown name 'wide', did you mean 'width'",
        ),
    ],
)
def test_factories_that_give_no_model(mine, spec, message):
    with pytest.raises(InputError, match=message):
        factory(spec, (2,), 3)()
