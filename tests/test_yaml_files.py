import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.errors import InputError
from kinfold.yaml_files import read_located, read_yaml, yaml_text

TEXT = """\
tasks: 2
optimizer:
  class_path: torch.optim.AdamW
  init_args: {lr: 1e-3,
              betas: [0.9, 0.99]}
methods:
- mixup
- name: label_smoothing

  epsilon: 0.1
"""


def test_every_key_has_its_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(TEXT)
    found = read_located(path)
    assert found.value["optimizer"]["init_args"] == {"lr": 0.001, "betas": [0.9, 0.99]}
    lines = TEXT.splitlines()
    for key in ("tasks", "optimizer", "optimizer.class_path", "optimizer.init_args.betas", "methods[1].epsilon"):
        assert key.rpartition(".")[2] in lines[found.lines[key] - 1], key
    assert "mixup" in lines[found.lines["methods[0]"] - 1]
    assert found.line("methods[1].epsilom") == found.lines["methods[1]"]
    assert found.line("methods[7]") == found.lines["methods"]
    assert found.line("data") is None


@pytest.mark.parametrize("text", ["", "# nothing\n", "null"])
def test_a_file_of_nothing(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert read_yaml(path) is None


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: 1\nb: {c: 1,\n c: 2}\n")
    with pytest.raises(InputError, match=r"c.yaml: .*line 3: the key 'c' stands twice"):
        read_yaml(path)


def test_aliases_are_read_once_and_go_round_nowhere(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: &x [1]\nb: *x\n? [1, 2]\n: 3\n")
    with pytest.raises(InputError, match="cannot be read as YAML"):  # a list is no key
        read_yaml(path)
    path.write_text("a: &x [1]\nb: *x\n")
    assert read_located(path).value["b"] == [1]
    path.write_text("a: &x [1, *x]\nb: *x\n")
    with pytest.raises(InputError, match="line 1: contains itself"):
        read_located(path)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["1e5", "-.5E-3"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(value=PLAIN)
def test_what_is_written_is_read_back(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_text(yaml_text(value), encoding="utf-8")
    assert read_yaml(path) == value
