import math
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from kinfold import config
from kinfold.errors import InputError
from kinfold.methods import METHODS, CropFlipCutout
from kinfold.transfer import AMTO, RULES, Nothing, TeachRule

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def test_a_part_is_written_in_four_ways():
    rule = AMTO(forms=("copy", "blend"), period=2)
    assert config.resolve("transfer", rule, RULES) is rule
    assert config.resolve("transfer", "amto", RULES) == AMTO()
    assert config.resolve("transfer", {"name": "amto", "forms": ["copy", "blend"], "period": 2}, RULES) == rule
    by_class = {"class_path": "kinfold.transfer.AMTO", "init_args": {"forms": ["copy", "blend"], "period": 2}}
    assert config.resolve("transfer", by_class, RULES) == rule
    assert config.resolve("transfer", "kinfold.transfer:TeachRule", RULES) == TeachRule()
    assert config.resolve("transfer", {"class_path": "kinfold.transfer:Nothing"}, RULES) == Nothing()


def test_binding_keeps_the_maker_for_later():
    make = config.resolve("optimizer", {"name": "adam", "lr": 0.1, "betas": [0.8, 0.9]}, OPTIMIZERS, bind=True)
    optimizer = make([nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("amtoo", "transfer: unknown name 'amtoo', did you mean 'amto'"),
        ({"name": "amto", "perod": 2}, "transfer: unknown name 'perod', did you mean 'period'"),
        ({"name": ["amto"]}, r"transfer: unknown name \['amto'\]"),
        ({"period": 2}, "has neither name nor class_path"),
        ({"class_path": "kinfold.transfer.AMTO", "args": {}}, "unknown name 'args'"),
        ({"class_path": "kinfold.transfer.AMTO", "init_args": [1]}, r"init_args is \[1\]"),
        ({"class_path": "kinfold.transfer.Absent"}, "cannot be imported"),
        ({"name": "amto", "period": 0}, "transfer: amto: period is 0"),
        ({"name": "amto", "alpha": "much"}, "transfer: "),
        ({"class_path": "kinfold.transfer.Plan"}, "transfer: Plan: missing a required argument: 'changes'"),
    ],
)
def test_what_cannot_be_resolved_is_said_in_one_line(spec, message):
    with pytest.raises(InputError, match=message) as error:
        config.resolve("transfer", spec, RULES)
    assert "\n" not in str(error.value)


def test_a_bound_maker_must_not_lack_an_argument():
    spec = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"gamma": 0.5}}
    with pytest.raises(InputError, match="scheduler: StepLR: missing a required argument: 'step_size'"):
        config.resolve("scheduler", spec, {}, bind=True)


@pytest.mark.parametrize("part", [*(make() for make in RULES.values()), *(make() for make in METHODS.values())])
def test_every_part_survives_its_description_in_yaml(part):
    described = yaml.safe_load(yaml.safe_dump(config.describe(part)))
    again = config.resolve("part", described, {})
    assert type(again) is type(part)
    assert again == part
    assert getattr(again, "needs", None) == getattr(part, "needs", None)


def test_descriptions_of_what_is_not_a_part(tmp_path):
    make = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    described = config.describe(make)
    again = config.resolve("optimizer", described, {}, bind=True)
    assert (again.func, again.keywords) == (make.func, make.keywords)
    assert config.describe({"a": (1, None, True), "b": Path("x"), 3: math.pi}) == {
        "a": [1, None, True],
        "b": "x",
        "3": math.pi,
    }
    assert config.describe([CropFlipCutout(padding=2)])[0]["init_args"] == {"padding": 2, "flip": True, "cutout": 0}
    for unmade in (lambda: 0, nn.ReLU(), partial(lambda x: x), partial(torch.optim.SGD, 1)):
        said = config.describe(unmade)
        assert said.startswith("<")
        assert said.endswith(">")
