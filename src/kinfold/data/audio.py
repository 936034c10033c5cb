"""Sounds: wav files as log-mel spectrograms, images of one channel [1, bands, frames].

Legend: N recordings, S samples, M mel bands, F frames.
"""

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt64
from torch import Tensor

from kinfold.data.base import Dataset, Encoder, Inputs, Kind, Label, TensorInputs
from kinfold.data.folders import class_files, column_paths
from kinfold.data.hashes import content_hashes
from kinfold.data.programs import FromSeries, Port, Program, padded
from kinfold.data.streamed import Streamed
from kinfold.data.table import TableDataset
from kinfold.data.targets import make_target, row_values
from kinfold.errors import InputError
from kinfold.importing import one_line
from kinfold.processes import free_bytes

WAV_ENDINGS = (".wav", ".wave")
"""How the names of sound files end."""

RATE = 16_000
"""Samples a second to which every recording is resampled."""

WINDOW, HOP, BANDS = 400, 160, 64
"""Samples in a window (25 ms), samples from one window to the next (10 ms), and mel bands (M)."""

MAX_SECONDS = 10.0
"""Recordings are cut to this many seconds where nothing else is asked for."""

HELD_BYTES = 2**30
"""Spectrograms that take no more than this are held in memory; others are computed as they are needed."""

_POINTS = 512  # of the Fourier transform: the next power of two
_FLOOR = 1e-6  # added to energies, so that silence has a logarithm
_FITTED_RECORDINGS = 1024  # enough for the moments of 64 bands
_CPU = torch.device("cpu")
_RATES = range(1_000, 768_001)
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE


@dataclass(frozen=True)
class WavHeader:
    """What a wav file says of its sound.

    Attributes:
        coding: how a sample is written: whole numbers or floats.
        bits: of a sample.
        channels: of a frame.
        rate: frames a second.
        frames: how many.
        offset: where in the file they begin.
    """

    coding: Literal["int", "float"]
    bits: int
    channels: int
    rate: int
    frames: int
    offset: int

    @property
    def samples(self) -> int:
        """How many samples the recording has once it is mono at `RATE`."""
        return math.ceil(Fraction(self.frames * RATE, self.rate))


def read_wav_header(path: Path) -> WavHeader:
    """Returns what a wav file says of itself, checked against the file's size.

    Raises:
        InputError: no such file, no wav file, a coding other than PCM of 8, 16, 24 or 32 bits and floats of 32 or 64,
            a rate out of bounds, no samples, or fewer than the file says.
    """
    try:
        with path.open("rb") as file:
            return _header(file, path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}).") from None


def _header(file: BinaryIO, path: Path) -> WavHeader:
    size = path.stat().st_size
    riff = file.read(12)
    if riff[:4] != b"RIFF" or riff[8:] != b"WAVE":
        raise InputError(f"{path}: is {'no wav file' if size else 'empty'}; replace or remove it.")
    form: bytes | None = None
    while len(chunk := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", chunk)
        start = file.tell()
        if start + length > size:
            raise InputError(f"{path}: is cut off: it has {size} bytes of {start + length}; replace or remove it.")
        if name == b"fmt ":
            form = file.read(length)
        if name == b"data":
            if form is None or len(form) < 16:
                raise InputError(f"{path}: does not say how its sound is written; replace or remove it.")
            return _described(form, start, length, path)
        file.seek(start + length + length % 2)  # chunks begin at even places
    raise InputError(f"{path}: is cut off before its sound; replace or remove it.")


def _described(form: bytes, offset: int, length: int, path: Path) -> WavHeader:
    tag, channels, rate, _, frame_bytes, bits = struct.unpack("<HHIIHH", form[:16])
    if tag == _EXTENSIBLE and len(form) >= 26:
        tag = struct.unpack("<H", form[24:26])[0]
    known = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}
    if bits not in known.get(tag, ()):
        raise InputError(f"{path}: is written in coding {tag} with {bits} bits; save it as PCM or float wav.")
    if channels == 0 or frame_bytes != channels * bits // 8 or rate not in _RATES:
        raise InputError(
            f"{path}: says {channels} channels, {frame_bytes} bytes a frame and {rate} frames a second, which cannot "
            "be; replace or remove it."
        )
    if length < frame_bytes:
        raise InputError(f"{path}: holds no sound; replace or remove it.")
    return WavHeader("int" if tag == _PCM else "float", bits, channels, rate, length // frame_bytes, offset)


def read_wav(path: Path, max_seconds: float | int = MAX_SECONDS) -> Float32[np.ndarray, " S"]:
    """Returns the beginning of a recording, its channels averaged, at 16 kHz, full scale being 1.

    Resampled by a polyphase filter (`scipy.signal.resample_poly`).

    Args:
        path: a wav file: PCM of 8, 16, 24 or 32 bits, or floats of 32 or 64.
        max_seconds: how much is read of a longer one.

    Raises:
        InputError: as for `read_wav_header`; a sample that is not finite.
    """
    header = read_wav_header(path)
    samples = _decoded(_raw(path, header, max_seconds), header).reshape(-1, header.channels).mean(axis=1)
    if not np.isfinite(samples).all():
        raise InputError(f"{path}: sample {int(np.argmin(np.isfinite(samples)))} is not finite; replace or remove it.")
    step = Fraction(RATE, header.rate)
    if step != 1:
        from scipy.signal import resample_poly  # its import takes long

        samples = resample_poly(samples, step.numerator, step.denominator)
    mono: Float32[np.ndarray, " S"] = samples.astype(np.float32)
    return mono


def _raw(path: Path, header: WavHeader, max_seconds: float | int) -> bytes:
    frames = min(header.frames, math.ceil(max_seconds * header.rate))
    with path.open("rb") as file:
        file.seek(header.offset)
        return file.read(frames * header.channels * header.bits // 8)


def _decoded(raw: bytes, header: WavHeader) -> Float64[np.ndarray, " samples"]:
    if header.coding == "float":
        return np.frombuffer(raw, dtype=f"<f{header.bits // 8}").astype(np.float64)
    if header.bits == 8:  # alone without a sign
        return (np.frombuffer(raw, dtype=np.uint8).astype(np.float64) - 128) / 128
    if header.bits == 24:  # as the upper three bytes of four
        wide = np.zeros((len(raw) // 3, 4), dtype=np.uint8)
        wide[:, 1:] = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0] / 2.0**31
    return np.frombuffer(raw, dtype=f"<i{header.bits // 8}") / 2.0 ** (header.bits - 1)


def log_mel(samples: Float32[np.ndarray, " S"]) -> Float32[np.ndarray, "M F"]:
    r"""Returns the log-mel spectrogram of a recording at 16 kHz.

    With X_f the 512-point Fourier transform of samples 160 f … 160 f + 399 under a Hann window, and triangles H_m
    (see `mel_filters`), S[m, f] = ln(10⁻⁶ + Σ_k H_m[k] |X_f[k]|²). Windows lie inside the recording, so
    F = 1 + ⌊(S − 400) / 160⌋; one that is shorter than a window is padded with silence to one.

    Example:
        >>> tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
        >>> spectrogram = log_mel(tone)
        >>> spectrogram.shape, int(spectrogram.mean(axis=1).argmax())
        ((64, 98), 22)
    """
    padded = np.pad(samples, (0, max(0, WINDOW - len(samples))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)
    power = np.abs(np.fft.rfft(windows * hann, _POINTS, axis=1)) ** 2
    energies: Float32[np.ndarray, "M F"] = np.log(mel_filters() @ power.T + _FLOOR).astype(np.float32)
    return energies


@lru_cache(maxsize=1)
def mel_filters() -> Float32[np.ndarray, "M K"]:
    """Returns the weights of the mel bands on the frequencies of the Fourier transform, 0 to 8 kHz.

    Band m is a triangle that rises from 0 at the m-th of 66 points to 1 at the next and falls to 0 at the one after;
    the points divide the mel scale, 2595 log₁₀(1 + f / 700 Hz), evenly. (Davis, Mermelstein, *Comparison of
    parametric representations for monosyllabic word recognition*, IEEE TASSP 1980.)
    """
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    points = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    frequencies = np.arange(_POINTS // 2 + 1) * RATE / _POINTS
    left, centre, right = (points[start : start + BANDS, None] for start in range(3))
    rising, falling = (frequencies - left) / (centre - left), (right - frequencies) / (right - centre)
    filters: Float32[np.ndarray, "M K"] = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    filters.flags.writeable = False  # every caller is given the same array
    return filters


def _frames(samples: int) -> int:
    return 1 + max(0, samples - WINDOW) // HOP


@final
class RecordingInputs(Streamed):
    """Spectrograms that are computed as they are needed.

    Args:
        paths: the recordings.
        row: gives the encoded spectrogram of one.
        shape: of it.
        device: where computed ones are held.
        dtype: of the rows that are handed out.
    """

    num_workers = None

    def __init__(
        self,
        paths: tuple[Path, ...],
        row: Callable[[Path], Float32[np.ndarray, "1 M F"]],
        shape: tuple[int, ...],
        device: torch.device = _CPU,
        dtype: torch.dtype = torch.float32,
    ):
        self._paths, self._row, self._shape = paths, row, shape
        self.device, self._dtype = device, dtype

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def form(self) -> tuple[tuple[int, ...], torch.dtype]:
        return self._shape, torch.float32

    def decode(self, row: int, key: int) -> Float32[Tensor, "1 M F"]:
        del key  # nothing is drawn at random
        return torch.from_numpy(self._row(self._paths[row]))

    def finished(self, held: Float32[Tensor, "*axes 1 M F"]) -> Float[Tensor, "*axes 1 M F"]:
        return held.to(self._dtype)

    def to(self, device: torch.device, dtype: torch.dtype) -> "RecordingInputs":
        return RecordingInputs(self._paths, self._row, self._shape, device, dtype)


@dataclass(frozen=True)
class AudioEncoder(Encoder):
    """Turns wav files into log-mel spectrograms [1, M, F] of one length, each band in standard units.

    A value S of a band becomes (S − shift) / scale. A recording that is longer is cut to its beginning, a shorter one
    is padded with zeros, the band's mean, at its end.

    Attributes:
        frames: F: that of the longest fitted recording, once cut.
        max_seconds: what recordings are cut to.
        shift: mean of each band over the fitted rows (over 1,024 of them, evenly spaced, where there are more).
        scale: its standard deviation over the same; 1 where the band is constant.
        column: the column that holds the paths, where they come as a table; or None.
    """

    frames: int
    max_seconds: float
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    column: str | None = None
    kind = "audio"

    @classmethod
    def fit(
        cls,
        paths: Sequence[Path],
        rows: Int64[np.ndarray, " rows"],
        *,
        column: str | None = None,
        max_seconds: float = MAX_SECONDS,
    ) -> "AudioEncoder":
        """Returns an encoder fitted to the given rows only.

        Raises:
            InputError: a file is damaged.
        """
        samples = max(read_wav_header(paths[row]).samples for row in rows)
        frames = _frames(min(samples, math.ceil(max_seconds * RATE)))
        count, total, squares = 0, np.zeros(BANDS), np.zeros(BANDS)
        for row in rows[:: math.ceil(len(rows) / _FITTED_RECORDINGS)]:
            spectrogram = log_mel(read_wav(paths[row], max_seconds)).astype(np.float64)
            count += spectrogram.shape[1]
            total += spectrogram.sum(axis=1)
            squares += (spectrogram**2).sum(axis=1)
        mean = total / count
        deviation = np.sqrt(np.maximum(0, squares / count - mean**2))
        scale = np.where(deviation > 1e-4, deviation, 1.0)  # the rounding of equal values must not be blown up
        return cls(frames, max_seconds, tuple(mean.tolist()), tuple(scale.tolist()), column)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, BANDS, self.frames)

    def encode(self, features: Any) -> Inputs:
        paths = self._paths(features)
        if 4 * len(paths) * math.prod(self.input_shape) > min(HELD_BYTES, free_bytes()):
            return RecordingInputs(paths, self._row, self.input_shape)
        values = np.empty((len(paths), *self.input_shape), dtype=np.float32)
        for number, path in enumerate(paths):
            values[number] = self._row(path)
        held: Float[Tensor, "N 1 M F"] = torch.from_numpy(values)
        return TensorInputs(held)

    def _row(self, path: Path) -> Float32[np.ndarray, "1 M F"]:
        spectrogram = log_mel(read_wav(path, self.max_seconds))[:, : self.frames]
        row = np.zeros(self.input_shape, dtype=np.float32)
        row[0, :, : spectrogram.shape[1]] = (spectrogram - np.array(self.shift)[:, None]) / np.array(self.scale)[
            :, None
        ]
        return row

    def program(self) -> Program:
        port = Port("spectrogram", self.input_shape, torch.float32, "log-mel, NaN behind the end of the recording")
        shift, scale = (torch.tensor(each, dtype=torch.float64)[:, None] for each in (self.shift, self.scale))
        about = {
            "spectrogram": f"of a recording at {RATE} Hz, mono, cut to {self.max_seconds:g} s: {BANDS} mel bands, "
            f"windows of {WINDOW} samples {HOP} apart; kinfold.data.audio.log_mel computes it",
            "length": f"cut to {self.frames} frames, or padded with NaN at its end",
            "shift": list(self.shift),
            "scale": list(self.scale),
        }
        return Program((port,), FromSeries(shift, scale), self._tensors, about)

    def _tensors(self, features: Any) -> tuple[Float32[Tensor, "N 1 M F"]]:
        heard = (log_mel(read_wav(path, self.max_seconds)) for path in self._paths(features))
        return (padded([torch.from_numpy(each)[None] for each in heard], self.input_shape),)

    def _paths(self, features: Any) -> tuple[Path, ...]:
        if not hasattr(features, "columns"):  # a table, without importing pandas to ask
            return as_paths(features)
        if self.column is None:
            raise InputError("data: is a table where the model was trained on files; give their paths.")
        return tuple(column_paths(features, self.column))

    def spec(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "frames": self.frames,
            "max_seconds": self.max_seconds,
            "shift": list(self.shift),
            "scale": list(self.scale),
            "column": self.column,
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> "AudioEncoder":
        return cls(spec["frames"], spec["max_seconds"], tuple(spec["shift"]), tuple(spec["scale"]), spec["column"])


@dataclass(frozen=True)
class AudioDataset(Dataset):
    """Labelled recordings: `features` is a tuple of the paths of N wav files.

    Attributes:
        column: the column that held the paths, where they come from a table; or None.
        max_seconds: what recordings are cut to.
    """

    form = "image"
    standardised = True
    column: str | None = None
    max_seconds: float = MAX_SECONDS

    def fit(self, rows: Int64[np.ndarray, " rows"]) -> AudioEncoder:
        return AudioEncoder.fit(self.features, rows, column=self.column, max_seconds=self.max_seconds)

    def fingerprints(self) -> UInt64[np.ndarray, " N"]:
        return content_hashes(self._content(path) for path in self.features)

    def _content(self, path: Path) -> bytes:
        header = read_wav_header(path)  # but for its offset: what else a file holds beside its sound may differ
        said = (header.coding, header.bits, header.channels, header.rate, header.frames)
        return repr(said).encode() + _raw(path, header, self.max_seconds)


def from_recordings(
    paths: Any,
    y: Any,
    *,
    name: str = "recordings",
    kind: Kind | None = None,
    labels: Sequence[Label] | None = None,
    groups: Any = None,
    times: Any = None,
    max_seconds: float | int = MAX_SECONDS,
) -> AudioDataset:
    """Returns a data set of wav files, read as they are needed.

    Args:
        paths: a list of N paths. Files are PCM of 8, 16, 24 or 32 bits, or floats of 32 or 64; of any rate from 1 to
            768 kHz and any number of channels.
        y: [N] text, whole numbers or booleans (classes), or [N] or [N, K] floats (regression).
        name: a short name for messages and the run directory.
        kind: `classification` or `regression` where the type of `y` says otherwise.
        labels: the classes of an earlier run, in its order; default the labels of `y`, sorted.
        groups: [N] group of each row (such as its speaker), or None.
        times: [N] number or date of each row, or None.
        max_seconds: recordings are cut to this many seconds.

    Raises:
        InputError: no rows, a file that is missing or damaged (it is named), lengths that differ between paths and y,
            a target that cannot be used.
    """
    if not max_seconds > 0:
        raise InputError(f"max_seconds: is {max_seconds}; give a positive number.")
    features = as_paths(paths)
    for path in features:
        read_wav_header(path)
    target = make_target(y, kind=kind, labels=labels)
    if len(features) != len(target.values):
        raise InputError(f"y: has {len(target.values)} targets for {len(features)} recordings; give one a recording.")
    return AudioDataset(
        name,
        features,
        target,
        row_values(groups, len(features), "groups"),
        row_values(times, len(features), "times", sortable=True),
        max_seconds=float(max_seconds),
    )


def from_audio_folder(folder: Path, *, labels: Sequence[Label] | None = None) -> AudioDataset:
    """Returns a data set of the wav files in a folder, with a sub-folder for each class.

    Raises:
        InputError: as for `class_files` and `from_recordings`.
    """
    paths, y = class_files(folder, WAV_ENDINGS, labels)
    return from_recordings(paths, y, name=folder.resolve().name, labels=labels)


def from_audio_table(table: TableDataset) -> AudioDataset:
    """Returns a table whose only feature column holds the paths of wav files as these recordings.

    Raises:
        InputError: a row without a path, or a file that is missing or damaged.
    """
    (column,) = table.features.columns
    paths = tuple(column_paths(table.features, column))
    for path in paths:
        read_wav_header(path)
    return AudioDataset(table.name, paths, table.target, table.groups, table.times, str(column))


def as_paths(paths: Any) -> tuple[Path, ...]:
    """Returns paths as such, checked to be some.

    Raises:
        InputError: no rows, or a row that is no path.

    Example:
        >>> as_paths(["a.wav"]) == (Path("a.wav"),)
        True
    """
    if not isinstance(paths, (list, tuple)):
        raise InputError(f"X: is a {type(paths).__name__} where paths of wav files are needed; give a list of them.")
    if not paths:
        raise InputError("X: has no rows; give the path of one wav file at least.")
    for row, path in enumerate(paths):
        if not isinstance(path, (str, Path)):
            raise InputError(f"X: row {row} is a {type(path).__name__}; give the path of a wav file.")
    return tuple(map(Path, paths))
