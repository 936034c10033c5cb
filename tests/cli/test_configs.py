"""Configurations: the examples, the schemas, what --print-config prints, and how errors point into a file."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kinfold.cli.keys import COMPARE_KEYS, DATA, KEYS
from kinfold.cli.schema import COMMANDS, build_schema
from kinfold.cli.schemas import names_in, schema_text
from kinfold.methods import METHODS
from kinfold.transfer import RULES
from kinfold.yaml_files import read_yaml

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[2]
EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples" / "configs").glob("*.yaml"))}
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
FEW = ("--epochs", "2", "--quiet", "--out", "run")


def command_of(name):
    return "compare" if name.startswith("compare") else "train"


def validator(command):
    return jsonschema.Draft202012Validator(json.loads(schema_text(command)))


@pytest.fixture
def examples(tmp_path):
    """Has the examples lie where they are in the repository, seen from its root."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")


SLOWER = ("compare", "frozen", "grouped", "imbalanced", "methods")


@pytest.mark.usefixtures("examples")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOWER else []) for name in EXAMPLES]
)
def test_an_example_runs(cli, name):
    path = f"examples/configs/{name}.yaml"
    text = EXAMPLES[name].read_text(encoding="utf-8")
    command = command_of(name)
    assert f"#   kinfold {command} --config {path}\n" in text
    less = ("--seeds", "1", "--tasks", "2") if command == "compare" else () if "sklearn" in text else ("--tasks", "2")
    status, out, err = cli(command, "--config", path, *less, *FEW)
    assert (status, err) == (0, "")
    assert out
    config = yaml.safe_load(Path("run", "config.yaml" if command == "train" else "comparison.yaml").read_text())
    for key, value in read_yaml(EXAMPLES[name]).items():
        assert key in ("epochs", "tasks", "seeds", "arms") or config[key] == value, key


def test_there_are_ten_examples_and_more():
    assert len(EXAMPLES) > 10


def test_the_data_of_the_examples_are_what_their_script_writes(tmp_path):
    spec = importlib.util.spec_from_file_location("make_data", ROOT / "examples" / "data" / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    make.main(tmp_path)
    assert set(make.FILES) == {path.name for path in (ROOT / "examples" / "data").iterdir()} - {
        "make.py",
        "__pycache__",
    }
    for name in make.FILES:
        assert (tmp_path / name).read_text() == (ROOT / "examples" / "data" / name).read_text(), name


@pytest.mark.parametrize("command", COMMANDS)
def test_the_schemas_are_up_to_date(command):
    made, there = build_schema(command), json.loads(schema_text(command))
    if made["$comment"] != there["$comment"]:  # another torch, whose own parts take other arguments
        for schema in (made, there):
            del schema["$comment"]
            for key in ("optimizer", "scheduler", "loss"):
                del schema["$defs"][key]
    assert made == there, "write them anew: python -m kinfold.cli.schema"
    jsonschema.Draft202012Validator.check_schema(json.loads(schema_text(command)))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_schema_has_every_key(command):
    keys = KEYS if command == "train" else COMPARE_KEYS
    properties = json.loads(schema_text(command))["properties"]
    assert set(properties) == {"data", *keys}
    assert all(properties[name]["description"] == key.help for name, key in {"data": DATA, **keys}.items())
    assert set(names_in(json.loads(schema_text(command)), "methods")) == {"auto", *METHODS}
    assert set(names_in(json.loads(schema_text("train")), "transfer")) == set(RULES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_as_the_schema_has_it(name):
    validator(command_of(name)).validate(read_yaml(EXAMPLES[name]))


BROKEN = {
    "a key": "taks: 3",
    "a type": "tasks: many",
    "null": "tasks: null",
    "a choice": "criterion: median",
    "an engine": "engine: fast",
    "a name": "transfer: amtoo",
    "one of several": "transfer: teach+papaa",
    "an argument": "transfer: {name: amto, perod: 2}",
    "a type within": "optimizer: {name: adamw, lr: fast}",
    "a name within": "transfer: {name: amto, forms: [copi]}",
    "in a list": "methods: [mixup, {name: label_smoothing, epsilom: 0.1}]",
    "a class": "optimizer: {class_path: torch.optim.AdamW, args: {}}",
    "neither": "optimizer: {lr: 0.1}",
    "a model": "model: {name: mlp, hiden: [3]}",
    "a splitter": "splits: {name: kfold, fold: 3}",
    "pair": "optimizer: {name: adamw, betas: [0.9]}",
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_refused_by_the_schema_and_by_the_command(cli, case):
    """The editor marks what the command line refuses; and that names the key, or one around it, and its line."""
    text = f"data: iris\nepochs: 1\n{BROKEN[case]}\n"
    content = yaml.safe_load(text)
    assert not validator("train").is_valid(content)
    Path("c.yaml").write_text(text)
    status, out, err = (
        cli("train", "--config", "c.yaml", "--tasks", "1", *FEW)
        if "tasks" not in text
        else cli("train", "--config", "c.yaml", *FEW)
    )
    assert (status, out) == (2, "")
    key = list(content)[-1]
    assert re.match(rf"kinfold: config c\.yaml line 3: {key}[.\[:]", err), err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "text",
    [
        "splits: run/splits.safetensors",
        "model: package.module:factory",
        "model: torchvision:resnet18",
        "model: {name: 'timm:resnet18', pretrained: true}",
        "transfer: teach+papa",
        "optimizer: [sgd, {name: adamw, lr: 0.1}]",
        "optimizer: null",
        "scheduler: torch.optim.lr_scheduler.ConstantLR",
        "clip_norm: auto",
        "loss: package.module:function",
    ],
)
def test_the_schema_takes_what_the_command_does(text):
    validator("train").validate(yaml.safe_load(text))


def test_errors_point_at_the_line_of_the_key(cli):
    Path("c.yaml").write_text(
        "data: iris\noptimizer:\n  class_path: torch.optim.AdamW\n  init_args:\n    lr: 1e-3\n    weight_decoy: 0.1\n"
    )
    status, out, err = cli("train", "--config", "c.yaml", *FEW)
    assert (status, out) == (2, "")
    assert err.startswith(
        "kinfold: config c.yaml line 6: optimizer.init_args.weight_decoy: unknown name 'weight_decoy', "
        "did you mean 'weight_decay'?"
    )
    status, _, err = cli("train", "--config", "c.yaml", "--optimizer", "{name: adam, lrr: 1}", *FEW)
    assert status == 2
    assert err.startswith("kinfold: optimizer.lrr: unknown name 'lrr', did you mean 'lr'?")  # the flag's, no line
    Path("c.yaml").write_text("data: iris\n\narms: [all-rows]\nmodel: mpl\n")
    assert cli("compare", "--config", "c.yaml")[2].startswith(
        "kinfold: config c.yaml line 4: model: unknown name 'mpl'"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_printed_configuration_is_complete_and_is_read_back(cli, command):
    status, text, err = cli(command, "iris", "--print-config", "--epochs", "1", "--methods", "[mixup]")
    assert (status, err) == (0, "")
    keys = KEYS if command == "train" else COMPARE_KEYS
    assert re.findall(r"^(?:# )?(\w+):", text, re.MULTILINE) == ["data", *keys]
    assert all(f"# {key.help}\n" in text for key in keys.values())
    content = yaml.safe_load(text)
    assert (content["data"], content["epochs"], content["methods"], content["model"]) == ("iris", 1, ["mixup"], "auto")
    validator(command).validate(content)
    Path("c.yaml").write_text(text)
    assert cli(command, "--config", "c.yaml", "--print-config")[1] == text
    assert not Path("runs").exists()
    less = ("--seeds", "1", "--arms", "conventional") if command == "compare" else ()
    status, _, err = cli(command, "--config", "c.yaml", "--tasks", "2", *less, *FEW)
    assert (status, err) == (0, "")


def test_printing_trains_nothing_and_imports_no_torch(tmp_path):
    (tmp_path / "c.yaml").write_text("tasks: 3\noptimizer: {name: adamw, lr: 1e-3}\n")
    code = (
        "import sys, kinfold.cli\n"
        "try: status = kinfold.cli.main(sys.argv[1:])\n"
        "except SystemExit as ended: status = ended.code\n"
        "sys.exit(status or 'torch' in sys.modules)"
    )
    for argv in (
        ["train", "--print-config", "--config", "c.yaml"],
        ["compare", "absent.csv", "--print-config"],
        ["train", "--print-schema"],
        ["completion", "bash"],
        ["train", "--help"],
        ["compare", "--help"],
    ):
        done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, (argv, done.stderr)
        assert done.stdout


def test_the_page_is_true(cli):
    """Every YAML block runs, as the command above it says, and validates."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    for number, text in enumerate(blocks):
        content = yaml.safe_load(text)
        command = "compare" if "arms" in content else "train"
        validator(command).validate(read_yaml_text(text))
        Path("c.yaml").write_text(text)
        less = ("--seeds", "1") if command == "compare" else ()
        argv = (
            command,
            "--config",
            "c.yaml",
            "--tasks",
            "2",
            *less,
            "--epochs",
            "1",
            "--quiet",
            "--out",
            f"run{number}",
        )
        if "data" not in content:
            argv = (command, "iris", *argv[1:])
        status, _, err = cli(*argv)
        assert (status, err) == (0, ""), text
    for name in EXAMPLES:
        assert f"{name}.yaml" in PAGE


def read_yaml_text(text):
    Path("text.yaml").write_text(text)
    return read_yaml(Path("text.yaml"))
