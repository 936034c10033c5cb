import json
import struct

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import kinfold
from kinfold import random
from kinfold.cli import main
from kinfold.data import AudioEncoder, audio, encoder_from_spec, from_recordings, read, read_features
from kinfold.data.audio import BANDS, RATE, RecordingInputs, log_mel, mel_filters, read_wav, read_wav_header
from kinfold.data.base import TensorInputs
from kinfold.errors import InputError

CODINGS = [("int", 8), ("int", 16), ("int", 24), ("int", 32), ("float", 32), ("float", 64)]


def coded(samples, coding, bits):
    """Samples from −1 to 1 as the bytes of a wav file."""
    if coding == "float":
        return samples.astype(f"<f{bits // 8}").tobytes()
    if bits == 8:
        return np.round(samples * 127 + 128).astype(np.uint8).tobytes()
    whole = np.round(samples * (2 ** (bits - 1) - 1)).astype("<i4" if bits > 16 else "<i2")
    if bits == 24:
        return whole.reshape(-1, 1).view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    return whole.tobytes()


def form_of(coding="int", bits=16, channels=1, rate=RATE, *, extensible=False):
    tag = 1 if coding == "int" else 3
    rest = (channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    if not extensible:
        return struct.pack("<HHIIHH", tag, *rest)
    return struct.pack("<HHIIHH", 0xFFFE, *rest) + struct.pack("<HHIH", 22, bits, 0, tag) + bytes(14)


def wav_bytes(form, data, before=b""):
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(form)) + form + before
    body += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def write_wav(path, samples, coding="int", bits=16, rate=RATE):
    """Writes samples [S] or [S, channels] from −1 to 1; returns the path."""
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wav_bytes(form_of(coding, bits, channels, rate), coded(samples.reshape(-1), coding, bits)))
    return path


def tone(hertz, seconds=0.1, rate=RATE):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def write_folder(root, n=24):
    draws = np.random.default_rng(0)
    for number in range(n):
        name, hertz = (("high", 3000), ("low", 300))[number % 2]
        samples = tone(hertz * draws.uniform(0.9, 1.1), draws.uniform(0.05, 0.08))
        write_wav(root / name / f"{number}.wav", samples + 0.01 * draws.normal(size=len(samples)))
    return root


@pytest.mark.parametrize(("coding", "bits"), CODINGS)
def test_codings(tmp_path, coding, bits):
    samples = np.array([0.0, 0.5, -0.5, 1.0, -1.0, 0.25])
    path = write_wav(tmp_path / "a.wav", samples, coding, bits)
    assert (read_wav_header(path).coding, read_wav_header(path).bits) == (coding, bits)
    np.testing.assert_allclose(read_wav(path), samples, atol=1.5 / 2 ** min(bits - 1, 20))
    path.write_bytes(wav_bytes(form_of(coding, bits, extensible=True), coded(samples, coding, bits)))
    np.testing.assert_allclose(read_wav(path), samples, atol=1.5 / 2 ** min(bits - 1, 20))


def test_channels_are_averaged_and_other_chunks_passed_over(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.array([[1.0, 0.0], [0.5, -0.5], [-1.0, 0.0]]), "float", 32)
    np.testing.assert_allclose(read_wav(path), [0.5, 0.0, -0.5])
    note = b"LIST" + struct.pack("<I", 3) + b"abc\0"  # of an odd length, and so padded
    path.write_bytes(wav_bytes(form_of(), coded(np.array([0.5]), "int", 16), note))
    np.testing.assert_allclose(read_wav(path), [0.5], atol=1e-4)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled(tmp_path, rate):
    path = write_wav(tmp_path / "a.wav", tone(440, 0.25, rate), "float", 32, rate)
    samples = read_wav(path)
    assert len(samples) == read_wav_header(path).samples
    expected = tone(440, 0.25)
    middle = slice(400, 3600)  # the filter has no neighbours at the ends
    np.testing.assert_allclose(samples[middle], expected[middle], atol=2e-3)


def test_only_the_beginning_is_read(tmp_path):
    path = write_wav(tmp_path / "a.wav", tone(440, 0.2), "float", 32)
    np.testing.assert_array_equal(read_wav(path, 0.05), read_wav(path)[:800])


def test_mel_bands_cover_the_frequencies():
    filters = mel_filters()
    assert filters.shape == (BANDS, 257)
    assert (filters.max(axis=1) > 0).all()  # no band falls between two frequencies
    assert (filters[:, 2:256].sum(axis=0) > 0).all()
    centres = [int(filters[m].argmax()) for m in range(BANDS)]
    assert centres == sorted(centres)


def test_log_mel_against_its_formula():
    samples = np.random.default_rng(0).normal(size=900).astype(np.float32)
    spectrogram = log_mel(samples)
    assert spectrogram.shape == (BANDS, 4)
    hann = torch.hann_window(400, periodic=True, dtype=torch.float64)
    for f in range(4):
        window = torch.from_numpy(samples[160 * f : 160 * f + 400]).double() * hann
        power = torch.fft.rfft(window, 512).abs() ** 2
        expected = torch.log(1e-6 + torch.from_numpy(mel_filters().astype(np.float64)) @ power)
        np.testing.assert_allclose(spectrogram[:, f], expected, rtol=1e-4, atol=1e-4)
    short = log_mel(samples[:100])
    np.testing.assert_array_equal(short, log_mel(np.pad(samples[:100], (0, 300))))
    assert np.isfinite(log_mel(np.zeros(400, dtype=np.float32))).all()


@given(content=st.binary(max_size=80))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_a_wav_file_or_one_clear_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "a.wav"
    for data in (content, b"RIFF\0\0\0\0WAVE" + content, wav_bytes(content, content)):
        path.write_bytes(data)
        try:
            said = None
            assert np.isfinite(read_wav(path)).all()
        except InputError as error:
            said = str(error)
        assert said is None or (said.startswith(f"{path}: ") and "\n" not in said)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"not a sound", "is no wav file"),
        (b"RIFF\0\0\0\0WAVE", "is cut off before its sound"),
        (wav_bytes(form_of(), bytes(100))[:90], "is cut off: it has 90 bytes of 144"),
        (wav_bytes(form_of(), b""), "holds no sound"),
        (wav_bytes(form_of()[:10], bytes(4)), "does not say how its sound is written"),
        (b"RIFF\0\0\0\0WAVEdata\x02\0\0\0ab", "does not say how its sound is written"),
        (wav_bytes(form_of("int", 12), bytes(4)), "is written in coding 1 with 12 bits"),
        (wav_bytes(b"\x02" + form_of()[1:], bytes(4)), "is written in coding 2 with 16 bits"),
        (wav_bytes(form_of(channels=0), bytes(4)), "says 0 channels"),
        (wav_bytes(form_of(rate=1), bytes(4)), "says 1 channels, 2 bytes a frame and 1 frames a second"),
        (wav_bytes(form_of(rate=10**9), bytes(4)), "says 1 channels, 2 bytes a frame and 1000000000 frames a second"),
        (wav_bytes(form_of("float", 32), np.array([0, np.nan], "<f4").tobytes()), "sample 1 is not finite"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"a.wav: {message}") as error:
        read_wav(path)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"absent\.wav: no such file"):
        read_wav(tmp_path / "absent.wav")
    with pytest.raises(InputError, match="cannot be read"):
        read_wav(tmp_path)


def test_encoding(tmp_path):
    lengths = (0.05, 0.1, 0.2)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, size=3200)
    paths = [write_wav(tmp_path / f"{n}.wav", noise[: int(s * RATE)] + tone(440, s)) for n, s in enumerate(lengths)]
    dataset = from_recordings(paths, ["a", "b", "a"])
    encoder = dataset.fit(np.array([0, 1]))
    assert encoder.input_shape == (1, BANDS, 8)
    assert encoder_from_spec(json.loads(json.dumps(encoder.spec()))) == encoder
    inputs = encoder.encode([str(path) for path in paths])
    assert isinstance(inputs, TensorInputs)
    x = inputs.rows(torch.arange(3))
    assert x.shape == (3, 1, BANDS, 8)
    assert not x[0, :, :, 3:].any()  # padding
    fitted = torch.cat([x[0, 0, :, :3], x[1, 0]], 1)
    torch.testing.assert_close(fitted.mean(1), torch.zeros(BANDS), atol=1e-3, rtol=0)
    torch.testing.assert_close(fitted.std(1, unbiased=False), torch.ones(BANDS), atol=1e-2, rtol=0)
    unseen = write_wav(tmp_path / "2.wav", tone(50, 0.2))  # what is not among the fitted rows changes nothing
    assert from_recordings([*paths[:2], unseen], ["a", "b", "a"]).fit(np.array([0, 1])) == encoder
    assert from_recordings(paths, ["a", "b", "a"], max_seconds=0.06).fit(np.arange(3)).frames == 4


def test_silence_is_not_blown_up(tmp_path):
    paths = [write_wav(tmp_path / f"{n}.wav", np.zeros(800)) for n in range(2)]
    dataset = from_recordings(paths, [0, 1])
    encoder = dataset.fit(np.arange(2))
    assert set(encoder.scale) == {1.0}
    assert float(encoder.encode(paths).rows(torch.arange(2)).abs().max()) < 1e-3


def test_large_sets_are_computed_as_needed(tmp_path, monkeypatch):
    paths = [write_wav(tmp_path / f"{n}.wav", tone(500 * (n + 1))) for n in range(3)]
    encoder = from_recordings(paths, [0, 1, 0]).fit(np.arange(3))
    held = encoder.encode(paths)
    monkeypatch.setattr(audio, "HELD_BYTES", 1)
    lazy = encoder.encode(paths)
    assert isinstance(lazy, RecordingInputs)
    assert len(lazy) == 3
    index = torch.tensor([[2, 0], [2, 2]])
    assert torch.equal(lazy.rows(index), held.rows(index))
    assert lazy.to(torch.device("cpu"), torch.float64).rows(torch.tensor(1)).dtype == torch.float64


def test_fingerprints_are_of_the_sound(tmp_path):
    paths = [write_wav(tmp_path / f"{n}.wav", tone(hertz)) for n, hertz in enumerate((500, 500, 600))]
    data = paths[0].read_bytes()[44:]
    paths[1].write_bytes(wav_bytes(form_of(), data, b"LIST" + struct.pack("<I", 4) + b"note"))
    one, same, other = from_recordings(paths, [0, 1, 0]).fingerprints()
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("paths", "y", "options", "message"),
    [
        ([], [], {}, "X: has no rows"),
        ("a.wav", [0], {}, "X: is a str where paths"),
        ([3], [0], {}, "X: row 0 is a int; give the path"),
        (["absent.wav"], [0], {}, "absent.wav: no such file"),
        (["a.wav", "a.wav"], [0, 1, 0], {}, "y: has 3 targets for 2 recordings"),
        (["a.wav", "a.wav"], [0, 1], {"max_seconds": 0}, "max_seconds: is 0"),
    ],
)
def test_recordings_that_cannot_be_used(tmp_path, monkeypatch, paths, y, options, message):
    monkeypatch.chdir(tmp_path)
    write_wav(tmp_path / "a.wav", tone(440))
    with pytest.raises(InputError, match=message):
        from_recordings(paths, y, **options)


def test_folders(tmp_path):
    root = write_folder(tmp_path / "sounds", 4)
    (root / "README.txt").write_text("read me")
    dataset = read(root)
    assert (dataset.form, dataset.name, dataset.target.labels) == ("image", "sounds", ("high", "low"))
    assert [path.name for path in dataset.features] == ["0.wav", "2.wav", "1.wav", "3.wav"]
    assert read_features(root) == list(dataset.features)
    assert read_features(root / "low") == list(dataset.features[2:])
    assert read_features(root / "low" / "1.wav") == [root / "low" / "1.wav"]
    with pytest.raises(InputError, match="is one recording"):
        read(root / "low" / "1.wav")
    (root / "none").mkdir()
    with pytest.raises(InputError, match="none: holds no file ending .wav"):
        read(root)
    (root / "none").rmdir()
    (root / "low" / "3.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"3\.wav: is no wav file"):
        read(root)


def test_a_table_of_paths(tmp_path):
    write_folder(tmp_path / "sounds", 4)
    table = tmp_path / "rows.csv"
    table.write_text("file,class\n" + "".join(f"sounds/{('high', 'low')[n % 2]}/{n}.wav,{n % 2}\n" for n in range(4)))
    dataset = read(table, target="class")
    assert (dataset.form, dataset.features[1]) == ("image", tmp_path / "sounds/low/1.wav")
    encoder = dataset.fit(np.arange(4))
    x = encoder.encode(dataset.features).rows(torch.arange(4))
    assert torch.equal(encoder.encode(read_features(table)).rows(torch.arange(4)), x)
    with pytest.raises(InputError, match="is a table where the model was trained on files"):
        from_recordings(dataset.features, [0, 1, 0, 1]).fit(np.arange(4)).encode(pd.DataFrame({"file": ["a.wav"]}))
    table.write_text(table.read_text() + "sounds/low/9.wav,1\n")
    with pytest.raises(InputError, match=r"rows\.csv: column 'file', row 4 names 'sounds/low/9\.wav'"):
        read(table, target="class")


def test_a_folder_of_sounds_trains_by_path(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = write_folder(tmp_path / "sounds")

    def make():
        return nn.Sequential(nn.AvgPool2d((1, 6)), nn.Flatten(), nn.Linear(BANDS, 2))

    result = kinfold.fit(make, root, tasks=2, epochs=5, batch_size=8, engine="vectorised")
    assert isinstance(result.encoder, AudioEncoder)
    paths = read_features(root)
    assert (result.predict(paths) == [path.parent.name for path in paths]).mean() > 0.9
    with random.seeded(torch.device("cpu"), 0):
        structure = make()
    loaded = kinfold.load(result.save(tmp_path / "saved"), structure)
    np.testing.assert_array_equal(loaded.predict_proba(paths), result.predict_proba(paths))

    assert main(["train", "sounds", "--model", "mlp", "--tasks", "2", "--epochs", "1", "--out", "run", "--quiet"]) == 0
    assert main(["evaluate", "run", "sounds"]) == 0
    assert main(["predict", "run", "sounds/low", "--out", "out.csv"]) == 0
    assert list(pd.read_csv("out.csv").file) == list(map(str, read_features("sounds/low")))
    assert main(["predict", "run", "sounds/low", "--out", "out.parquet"]) == 0
    assert list(pd.read_parquet("out.parquet"))[:3] == ["row", "file", "prediction"]
    assert len(pd.read_csv("out.csv")) == 12
    cut = root / "low" / "1.wav"
    cut.write_bytes(cut.read_bytes()[:-100])
    capsys.readouterr()
    assert main(["train", "sounds", "--out", "other"]) == 2
    assert "1.wav: is cut off" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
