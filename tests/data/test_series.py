import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import kinfold
from kinfold import random
from kinfold.data import encoder_from_spec, from_series, read, read_features, read_ts, read_ucr
from kinfold.data.base import TensorInputs
from kinfold.data.series import MaskedInputs, SeriesEncoder, is_ucr
from kinfold.errors import InputError

ALL = np.arange(3)
NAN = float("nan")
UNEQUAL = [np.array([[1.0, 3.0], [5.0, 5.0]]), np.array([[2.0], [5.0]]), np.array([[9.0, 9.0, 9.0], [5.0, 7.0, 7.0]])]


def write_ts(path, rows, *, head="@equalLength false\n", classes="up down"):
    path.write_text(f"# remark\n@problemName made\n{head}@classLabel true {classes}\n@data\n" + "\n".join(rows) + "\n")
    return path


def test_standardisation_by_hand():
    encoder = from_series(UNEQUAL, ["a", "b", "a"]).fit(np.array([0, 1]))
    assert encoder.shift == (2.0, 5.0)
    assert encoder.scale == pytest.approx((np.sqrt(2 / 3), 1.0))  # the second channel is constant
    x, mask = encoder.encode(UNEQUAL).rows(torch.tensor([0, 1, 2]))
    unit = np.sqrt(1.5)
    expected = [[[-unit, unit], [0, 0]], [[0, 0], [0, 0]], [[7 * unit, 7 * unit], [0, 2]]]  # the third row is cut
    torch.testing.assert_close(x, torch.tensor(expected, dtype=torch.float32))
    assert mask.tolist() == [[1, 1], [1, 0], [1, 1]]


def test_equal_lengths_need_no_mask():
    inputs = from_series(np.ones((3, 4)), [0, 1, 0]).fit(ALL).encode(np.ones((2, 1, 4)))
    assert isinstance(inputs, TensorInputs)
    assert inputs.rows(torch.tensor([[0], [1]])).shape == (2, 1, 1, 4)


def test_masks_follow_the_index_and_the_type():
    inputs = from_series(UNEQUAL, [0, 1, 0]).fit(ALL).encode(UNEQUAL).to(torch.device("cpu"), torch.float64)
    assert isinstance(inputs, MaskedInputs)
    assert len(inputs) == 3
    for index in (torch.tensor(1), torch.tensor([1]), torch.tensor([[1, 2], [0, 1]])):
        x, mask = inputs.rows(index)
        assert (x.shape, mask.shape) == ((*index.shape, 2, 3), (*index.shape, 3))
        assert x.dtype == mask.dtype == torch.float64
    assert inputs.rows(torch.tensor(1))[1].tolist() == [1, 0, 0]


def test_missing_values_are_the_mean_and_padding_is_left_out():
    dataset = from_series([[[NAN, 1.0, NAN, 3.0, NAN]], [[2.0, NAN, NAN, NAN, NAN]]], [0, 1])
    assert [each.shape for each in dataset.features] == [(1, 4), (1, 1)]
    x, _ = dataset.fit(np.arange(2)).encode(dataset.features).rows(torch.tensor([0]))
    assert x[0, 0, [0, 2]].tolist() == [0, 0]
    padded = from_series(np.array([[1.0, 2.0, NAN], [1.0, 2.0, 3.0]]), [0, 1])
    assert [each.shape for each in padded.features] == [(1, 2), (1, 3)]
    nothing = from_series([[[NAN, NAN], [1.0, 2.0]]] * 2, [0, 1])
    assert nothing.fit(np.arange(2)).shift[0] == 0.0


@given(
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=6),
    channels=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_fitted_rows_come_out_standardised_and_only_they_count(lengths, channels, seed):
    draws = np.random.default_rng(seed)
    rows = [draws.normal(3, 5, size=(channels, length)) for length in lengths]
    fitted = np.arange(len(rows) - 1)
    dataset = from_series(rows, np.arange(len(rows)) % 2)
    encoder = dataset.fit(fitted)
    others = from_series([*rows[:-1], rows[-1] * 100], np.arange(len(rows)) % 2)
    assert others.fit(fitted) == encoder
    assert encoder_from_spec(encoder.spec()) == encoder
    assert encoder.input_shape == (channels, max(lengths[:-1]))
    inputs = encoder.encode(dataset.features)
    values = inputs.rows(torch.from_numpy(fitted))
    if isinstance(values, tuple):
        x, mask = values
        assert mask.sum(1).tolist() == lengths[:-1]
        assert not (x * (1 - mask[:, None])).any()
        x = x.transpose(0, 1)[:, mask.bool()]
    else:
        x = values.transpose(0, 1).flatten(1)
    if x.shape[1] > 1:
        torch.testing.assert_close(x.mean(1), torch.zeros(channels), atol=1e-4, rtol=0)
        torch.testing.assert_close(x.std(1, unbiased=False), torch.ones(channels), atol=1e-4, rtol=0)


def test_fingerprints_tell_series_apart():
    hashes = from_series([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0, 2.0], [[0.0], [1.0]][0]], [0, 1, 0, 1]).fingerprints()
    assert hashes[0] == hashes[1]
    assert len(set(hashes.tolist())) == 3


@pytest.mark.parametrize(
    ("series", "y", "message"),
    [
        ([], [], "X: has no rows"),
        ("abc", [0], "X: is a str; give series"),
        (np.ones(3), [0, 1, 0], r"X: has shape \[3\]"),
        ([[1.0], ["a"]], [0, 1], "X: row 1: holds values of type <U1"),
        ([[1.0], [[1.0], [2.0]]], [0, 1], "X: row 1 has 2 channels where row 0 has 1"),
        ([[1.0], [2.0, np.inf]], [0, 1], "X: row 1, channel 0, step 1 is no finite float32"),
        ([[1.0], [2.0, 1e39]], [0, 1], "X: row 1, channel 0, step 1 is no finite float32"),
        ([[1.0], [NAN, NAN]], [0, 1], "X: row 1 has no values"),
        ([[1.0], []], [0, 1], "X: row 1 has no values"),
        ([[1.0], [[[1.0]]]], [0, 1], r"X: row 1 has shape \[1, 1, 1\]"),
        ([[1.0], [[1.0, 2.0], [3.0]]], [0, 1], "X: row 1: cannot become an array"),
        ([[1.0], [2.0]], [0], "y: every row has the label 0"),
        ([[1.0], [2.0]], [0, 1, 0], "y: has 3 targets for 2 series"),
    ],
)
def test_series_that_cannot_be_used(series, y, message):
    with pytest.raises(InputError, match=message) as error:
        from_series(series, y)
    assert "\n" not in str(error.value)


def test_rows_that_do_not_fit_the_encoder():
    encoder = SeriesEncoder(2, False, (0.0,), (1e-30,))
    with pytest.raises(InputError, match="X: series have 2 channels; give 1"):
        encoder.encode(np.ones((1, 2, 2)))
    with pytest.raises(InputError, match="X: row 1 lies too far outside"):
        encoder.encode([[0.0], [1e20]])
    with pytest.raises(InputError, match="X: 2 series padded to the longest of them, 10000000000 steps, take more"):
        SeriesEncoder(10**10, True, (0.0,), (1.0,)).encode([[0.0], [1.0]])
    assert encoder.encode([[0.0]]).rows(torch.tensor([0])).tolist() == [[[0.0, 0.0]]]  # shorter: padded


def test_ucr(tmp_path):
    path = tmp_path / "made_TRAIN.tsv"
    path.write_text("1.0\t0.5\t2\r\n\r\n-1\t3\tNaN\r\n")
    series, labels = read_ucr(path)
    np.testing.assert_array_equal(series, [[[0.5, 2.0]], [[3.0, NAN]]])
    assert labels.tolist() == [1, -1]
    dataset = read(path)
    assert (dataset.form, dataset.name, dataset.target.labels) == ("series", "made_TRAIN", (-1, 1))
    assert [each.shape for each in dataset.features] == [(1, 2), (1, 1)]
    np.testing.assert_array_equal(read_features(path), series)


def test_a_tsv_is_ucr_only_without_names(tmp_path):
    for text, expected in (("a\tb\n1\t2\n", False), ("1\t2\n", True), ("1\n2\n", False), ("", False)):
        (tmp_path / "x.tsv").write_text(text)
        assert is_ucr(tmp_path / "x.tsv") is expected
    (tmp_path / "x.tsv").write_bytes(b"\xff\xfe")
    assert not is_ucr(tmp_path / "x.tsv")
    (tmp_path / "x.tsv").write_text("1\t2\n3\t4\n5\t6\n")
    assert read(tmp_path / "x.tsv", target="2").form == "table"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\t2\t3\n1\t2\n", "line 2 has 2 fields where the first has 3"),
        ("1\t2\n\n0\tx\n", "line 3 holds 'x', which is no number"),
        ("1\t2\n0\t\n", "line 2 holds '', which is no number"),
        ("1\t2\n0\tinf\n", "line 2 holds a number that is no finite float32"),
        ("1\t2\n0\t1e39\n", "line 2 holds a number that is no finite float32"),
        ("1\t2\nNaN\t1\n", "line 2 has no label"),
        ("1\t2\n0\tNaN\n", "line 2 has no values"),
        ("1\n", "line 1 has no values"),
        ("\n\n", "holds no series"),
    ],
)
def test_damaged_ucr(tmp_path, text, message):
    path = tmp_path / "x.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=f"x.tsv: {message}") as error:
        read_ucr(path)
    assert "\n" not in str(error.value)


def test_ts(tmp_path):
    path = write_ts(tmp_path / "made.ts", ["1,?,3:4,5,6:up", "%# between", "7:8:down"], head="@DIMENSIONS 2\n")
    series, labels = read_ts(path)
    np.testing.assert_array_equal(series[0], [[1, NAN, 3], [4, 5, 6]])
    np.testing.assert_array_equal(series[1], [[7], [8]])
    assert labels == ["up", "down"]
    dataset = read(path)
    assert (dataset.form, dataset.name, dataset.target.labels) == ("series", "made", ("down", "up"))
    assert [each.shape for each in read_features(path)] == [(2, 3), (2, 1)]


def test_ts_labels(tmp_path):
    path = tmp_path / "x.ts"
    assert read_ts(write_ts(path, ["1:2", "1:10"], classes="2 10"))[1] == [2, 10]
    assert read_ts(write_ts(path, ["1:02", "1:10"], classes="02 10"))[1] == ["02", "10"]
    assert read_ts(write_ts(path, ["1:a b", "1:c"], classes=""))[1] == ["a b", "c"]
    path.write_text("@targetLabel true\n@data\n1,2:0.5\n2,1:1\n")
    assert read(path).target.kind == "regression"
    path.write_text("@classLabel false\n@data\n1,2\n2,1\n")
    assert [each.tolist() for each in read_features(path)] == [[[1, 2]], [[2, 1]]]
    with pytest.raises(InputError, match=r"x\.ts: is unlabelled"):
        read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no line '@data'"),
        ("@classLabel true a b\n", "has no line '@data'"),
        ("1,2:a\n@data\n", "line 1 is no header"),
        ("@data\n", "holds no series behind @data"),
        ("@timeStamps true\n@data\n(0,1):a\n", "has time stamps"),
        ("@dimensions two\n@data\n1:a\n", "@dimensions is 'two'"),
        ("@classLabel true a b\n@data\n1,2:a\n1,2:c\n", "line 4 ends with 'c', which @classLabel does not list"),
        ("@classLabel true a b\n@data\n1,2:a\n1,2,0.\n", "line 4 ends with '1,2,0.', which @classLabel does not list"),
        ("@classLabel true\n@data\n1,2:a\n1,2:\n", "line 4 has no label"),
        ("@classLabel true\n@data\n1,2:a\n1,2:?\n", "line 4 has no label"),
        ("@classLabel true\n@data\n1,2:a\nb\n", "line 4 has 0 channels where 1 are due"),
        ("@classLabel true\n@data\nb\n", "line 3 has no values"),
        ("@classLabel true\n@data\n1,2:a\n1,2:3,4:b\n", "line 4 has 2 channels where 1 are due"),
        ("@classLabel true\n@dimension 2\n@data\n1,2:a\n", "line 4 has 1 channels where 2 are due"),
        ("@classLabel true\n@univariate true\n@data\n1:2:a\n", "line 4 has 2 channels where 1 are due"),
        ("@classLabel true\n@data\n1,2:3:a\n", "line 3 has channels of unequal lengths"),
        ("@classLabel true\n@equalLength true\n@data\n1,2:a\n1:b\n", "line 5 has 1 steps where 2 are due"),
        ("@classLabel true\n@equalLength TRUE\n@seriesLength 3\n@data\n1,2:a\n", "line 5 has 2 steps where 3 are due"),
        ("@classLabel true\n@data\n1,x:a\n", "line 3 holds 'x', which is no number"),
        ("@classLabel true\n@data\n1,1e40:a\n", "line 3 holds a number that is no finite float32"),
        ("@classLabel true\n@data\n?,NaN:a\n", "line 3 has no values"),
        ("@targetLabel true\n@data\n1,2:high\n", "line 3 ends with 'high'; '@targetLabel true' needs numbers"),
    ],
)
def test_damaged_ts(tmp_path, text, message):
    path = tmp_path / "x.ts"
    path.write_text(text)
    with pytest.raises(InputError, match=f"x.ts: {message}") as error:
        read_ts(path)
    assert "\n" not in str(error.value)


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "x.ts").write_bytes(b"G\x40\x00\x10\x00")  # an MPEG stream has the same ending
    with pytest.raises(InputError, match="holds binary data"):
        read(tmp_path / "x.ts")
    (tmp_path / "x.ts").write_bytes(b"\xff\xfe@data")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read(tmp_path / "x.ts")
    with pytest.raises(InputError, match=r"absent\.ts: no such file"):
        read(tmp_path / "absent.ts")


class MaskedMean(nn.Module):
    """Means over the steps that a series has."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * channels, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weights = mask / mask.sum(1, keepdim=True)
        return self.linear(torch.cat([(x * weights[:, None]).sum(2), (x.abs() * weights[:, None]).sum(2)], 1))


@pytest.mark.parametrize("engine", ["sequential", "vectorised"])
def test_series_of_unequal_lengths_train_by_path(tmp_path, engine):
    draws = np.random.default_rng(0)
    rows, classes = [], []
    for row in range(60):
        x = draws.normal(3 * (row % 2), 1, size=(2, draws.integers(3, 8))).round(3)
        rows.append(":".join([*(",".join(map(str, channel)) for channel in x.tolist()), ("up", "down")[row % 2]]))
        classes.append(("up", "down")[row % 2])
    path = write_ts(tmp_path / "made.ts", rows)
    result = kinfold.fit(lambda: MaskedMean(2), path, tasks=2, epochs=8, batch_size=8, engine=engine)
    assert result.engine == engine
    assert (result.predict(read_features(path)) == classes).mean() > 0.9
    with random.seeded(torch.device("cpu"), 0):
        structure = MaskedMean(2)
    loaded = kinfold.load(result.save(tmp_path / "run"), structure)
    np.testing.assert_array_equal(loaded.predict_proba(read_features(path)), result.predict_proba(read(path).features))


def test_series_of_one_length_train_by_path(tmp_path):
    draws = np.random.default_rng(0)
    classes = np.arange(60) % 2
    rows = np.column_stack([classes, draws.normal(size=(60, 5)) + 3 * classes[:, None]])
    np.savetxt(tmp_path / "made.tsv", rows, delimiter="\t", fmt="%.4f")
    result = kinfold.fit("mlp", str(tmp_path / "made.tsv"), tasks=2, epochs=8, batch_size=8)
    assert (result.predict(rows[:, 1:]) == classes).mean() > 0.9
    loaded = kinfold.load(result.save(tmp_path / "run"))
    assert loaded.encoder == result.encoder
