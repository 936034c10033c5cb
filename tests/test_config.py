import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from kinfold import config, random
from kinfold.errors import InputError
from kinfold.methods import METHODS, CropFlipCutout
from kinfold.models import factory
from kinfold.parts import optimizer_maker
from kinfold.splits import RowInfo, draw_splits
from kinfold.transfer import AMTO, PAPA, RULES, Nothing, Rule, TeachRule, Together

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


@final
@dataclass(frozen=True)
class Wrapping(Rule):
    """A rule that holds a rule, and a class, and a function."""

    name: ClassVar[str] = "wrapping"
    rule: Rule = field(default_factory=Nothing)
    others: tuple[Rule, ...] = ()
    activation: type[nn.Module] = nn.ReLU
    score: Callable[[float], float] = math.sqrt

    def plan(self, view, state, generator):
        return self.rule.plan(view, state, generator)


def test_parts_hold_parts():
    """By class or by name, in lists as well; and classes and functions as they are."""
    made = config.resolve(
        "transfer",
        {
            "name": "wrapping",
            "rule": {"class_path": "kinfold.transfer.PAPA", "init_args": {"alpha": 0.5}},
            "others": [{"name": "amto", "forms": ["copy"]}, {"class_path": "kinfold.transfer.Nothing"}],
            "activation": "torch.nn:GELU",
            "score": "math:exp",
        },
        {**RULES, "wrapping": Wrapping},
    )
    assert made == Wrapping(PAPA(alpha=0.5), (AMTO(forms=("copy",)), Nothing()), nn.GELU, math.exp)
    both = {"class_path": "kinfold.transfer.Together", "init_args": {"rules": [{"name": "teach"}, {"name": "papa"}]}}
    assert config.resolve("transfer", both, RULES) == Together((TeachRule(), PAPA()))
    again = config.describe(Together((TeachRule(), PAPA(steps=3))))
    assert config.resolve("transfer", yaml.safe_load(yaml.safe_dump(again)), {}) == Together(
        (TeachRule(), PAPA(steps=3))
    )


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ({"rule": {"name": "papa", "alfa": 1}}, "transfer.rule.alfa: unknown name 'alfa', did you mean 'alpha'"),
        (
            {"others": [{"name": "papa"}, {"class_path": "kinfold.transfer.PAPA", "init_args": {"steps": "x"}}]},
            r"transfer.others\[1\].init_args.steps: is 'x'; give a whole number",
        ),
        ({"rule": {"name": "papas"}}, "transfer.rule: unknown name 'papas', did you mean 'papa'"),
        ({"activation": "torch.nn:GELUU"}, "transfer.activation: 'torch.nn:GELUU' cannot be imported .* 'GELU'"),
    ],
)
def test_what_is_wrong_within_is_named_by_its_path(inner, message):
    with pytest.raises(InputError, match=message):
        config.resolve("transfer", {"name": "wrapping", **inner}, {**RULES, "wrapping": Wrapping})


def test_a_model_is_built_anew_with_the_modules_within_it():
    inner = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 2}}
    spec = {
        "class_path": "torch.nn.TransformerEncoder",
        "init_args": {"encoder_layer": inner, "num_layers": 2, "enable_nested_tensor": False},
    }
    make = factory(spec, (2,), 2)
    with random.seeded(torch.device("cpu"), 0, "test"):
        one, other = make(), make()
    assert not torch.equal(one.layers[0].weight, other.layers[0].weight)


def test_a_splitter_of_scikit_learn_by_class():
    spec = {"class_path": "sklearn.model_selection.KFold", "init_args": {"n_splits": 3}}
    splits = draw_splits(RowInfo(np.zeros(9)), spec, tasks=8, val_fraction=0.2, holdout=0, seed=0)
    assert splits.tasks == 3
    with pytest.raises(InputError, match="splits.init_args.n_split: unknown name 'n_split', did you mean 'n_splits'"):
        draw_splits(
            RowInfo(np.zeros(9)), {**spec, "init_args": {"n_split": 3}}, tasks=8, val_fraction=0.2, holdout=0, seed=0
        )
    with pytest.raises(InputError, match="splits: .* makes a float"):
        draw_splits(
            RowInfo(np.zeros(9)), {"class_path": "builtins.float"}, tasks=2, val_fraction=0.2, holdout=0, seed=0
        )


def test_binding_keeps_the_maker_for_later():
    make = config.resolve("optimizer", {"name": "adam", "lr": 0.1, "betas": [0.8, 0.9]}, OPTIMIZERS, bind=True)
    optimizer = make([nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("amtoo", "transfer: unknown name 'amtoo', did you mean 'amto'"),
        ({"name": "amto", "perod": 2}, "transfer.perod: unknown name 'perod', did you mean 'period'"),
        ({"name": ["amto"]}, r"transfer: unknown name \['amto'\]"),
        ({"period": 2}, "has neither name nor class_path"),
        ({"class_path": "kinfold.transfer.AMTO", "args": {}}, "transfer.args: unknown name 'args'"),
        ({"class_path": "kinfold.transfer.AMTO", "init_args": [1]}, r"init_args is \[1\]"),
        ({"class_path": "kinfold.transfer.Absent"}, "cannot be imported"),
        ({"name": "amto", "period": 0}, "transfer: amto: period is 0"),
        ({"name": "amto", "alpha": "much"}, "transfer.alpha: is 'much'; give a number"),
        (
            {"name": "amto", "forms": ["copy", "blond"]},
            r"transfer.forms\[1\]: unknown name 'blond', did you mean 'blend'",
        ),
        (
            {"class_path": "kinfold.transfer.AMTO", "init_args": {"alfa": 0.1}},
            "transfer.init_args.alfa: unknown name 'alfa', did you mean 'alpha'",
        ),
        ({"class_path": "kinfold.transfer.AMTOO"}, "cannot be imported .*; did you mean 'AMTO'"),
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


NETWORKS = {"guidance": 1, "mtard": 2}
"""How many networks a method cannot be made without."""
METHODS_MADE = [make(*[nn.Flatten] * NETWORKS.get(name, 0)) for name, make in METHODS.items()]


@pytest.mark.parametrize("part", [*(make() for make in RULES.values()), *METHODS_MADE])
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


@pytest.mark.parametrize(
    ("given", "near"), [("learning_rate", "lr"), ("wd", "weight_decay"), ("beta1", "betas"), ("epsilon", "eps")]
)
def test_what_others_call_an_argument_is_understood(given, near):
    with pytest.raises(InputError, match=rf"optimizer\.{given}: unknown name '{given}', did you mean '{near}'\?"):
        optimizer_maker({"name": "adamw", given: 0.1})
