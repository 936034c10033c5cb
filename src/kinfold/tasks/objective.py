"""The loss that one task minimises, and the metric by which it is judged.

Legend: B batch, N rows, C classes or outputs.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from kinfold.data.base import Kind
from kinfold.errors import InputError
from kinfold.methods.base import Batch, Rows

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
MetricFunction: TypeAlias = Callable[[Tensor, Tensor], float]
WeightedMetricFunction: TypeAlias = Callable[[Tensor, Tensor, Tensor], float]

_FEWEST = 3
"""Classes from which on it pays to fill a vector with others."""


@dataclass(frozen=True)
class Metric:
    """A figure of merit.

    Attributes:
        name: as it appears in results.
        compute: (outputs [N, C] or [N], targets [N]) → number; outputs are logits, or values in regression.
        higher_is_better: its direction.
        accuracy: whether it is the share of rows that are right, so that Wilson's interval applies.
        weighted: (outputs, targets, weights [N]) → number, of rows that count by their weights; None where the
            metric knows of no weights, and all rows count alike.
    """

    name: str
    compute: MetricFunction
    higher_is_better: bool = True
    accuracy: bool = False
    weighted: WeightedMetricFunction | None = None

    def oriented(self, value: float) -> float:
        """Returns the value with its sign changed where lower is better."""
        return value if self.higher_is_better else -value


def accuracy(
    outputs: Float[Tensor, "N C"], targets: Shaped[Tensor, " N"], weights: Float[Tensor, " N"] | None = None
) -> float:
    """Returns the share of rows, by their weights, whose largest output is their class."""
    return float(_mean((outputs.max(1).indices == targets).double(), weights))


def r2(
    outputs: Float[Tensor, "N *K"],
    targets: Float[Tensor, "N *K"],
    weights: Float[Tensor, " N"] | None = None,
    undefined: float = math.nan,
) -> float:
    """Returns R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)², averaged over target columns; `undefined` for one that is constant.

    With weights, sums and means are those of rows that count by them.
    """
    outputs, targets = outputs.double(), targets.double()
    residual = _mean((targets - outputs).square(), weights)
    total = _mean((targets - _mean(targets, weights)).square(), weights)
    # The mean of equal values need not come out exact, so they are compared.
    varies = (targets != targets[:1]).any(0) & (total > 0)
    return float(torch.where(varies, 1.0 - residual / total, undefined).mean())


def finite_r2(
    outputs: Float[Tensor, "N *K"], targets: Float[Tensor, "N *K"], weights: Float[Tensor, " N"] | None = None
) -> float:
    """Returns R², but 0 for a column that is constant: of the few rows of a small set that may happen.

    Models whose R² is equal are told apart by their loss.
    """
    return r2(outputs, targets, weights, undefined=0.0)


def _mean(values: Float[Tensor, "N *K"], weights: Float[Tensor, " N"] | None) -> Float[Tensor, "*K"]:
    """The mean over rows, by weights where there are any."""
    if weights is None:
        return values.mean(0)
    share = (weights / weights.sum()).to(values.dtype)
    return (values * share.view(-1, *[1] * (values.ndim - 1))).sum(0)


@dataclass(frozen=True)
class Objective:
    """What is minimised and what is measured.

    Attributes:
        kind: classification or regression.
        outputs: C, the width a model must have.
        loss: (outputs, targets) → scalar mean; targets are class numbers, or probabilities once a method has
            softened or mixed them, or float values.
        row_loss: (outputs, targets) → [B] losses; used where only some rows are labelled, or rows have weights.
        row_weight: targets → [B] weights: `loss` is the sum of the row losses over the sum of these.
        score_loss: `loss` on the CPU, where models are scored.
        score_row_loss: `row_loss` on the CPU.
        metric: what decides.
        expected: whether these losses, and `row_weight`, take probabilities of the classes and are expectations under
            them (see `of_probabilities`); but for `score_loss`, which is as it was given.
    """

    kind: Kind
    outputs: int
    loss: LossFunction
    row_loss: LossFunction
    row_weight: Callable[[Tensor], Tensor]
    score_loss: LossFunction
    score_row_loss: LossFunction
    metric: Metric
    expected: bool = False

    @property
    def classes(self) -> int | None:
        """C in classification, else None."""
        return self.outputs if self.kind == "classification" else None

    def on(self, device: torch.device, dtype: torch.dtype) -> "Objective":
        """Returns the objective made anew for another device."""
        made = make_objective(self.kind, self.outputs, self.score_loss, self.metric, device, dtype)
        return made.of_probabilities() if self.expected else made

    def of_probabilities(self) -> "Objective":
        """Returns the objective with a loss that takes probabilities of the classes, whatever it was made for.

        Cross-entropy does; of another loss it is the expectation, Σ_c q(c) · its loss if the class were c. So it is of
        a cross-entropy with class weights, which torch divides by the rows' weights for class numbers only.
        """
        takes_them = isinstance(self.loss, nn.CrossEntropyLoss) and self.loss.weight is None
        if self.classes is None or self.expected or takes_them:
            return self
        row_loss, row_weight = _expected(self.row_loss, self.row_weight, self.classes)
        score_row_loss, _ = _expected(self.score_row_loss, self.row_weight, self.classes)

        def loss(outputs: Tensor, probabilities: Tensor) -> Tensor:
            return row_loss(outputs, probabilities).sum() / row_weight(probabilities).sum()

        return dataclasses.replace(
            self, loss=loss, row_loss=row_loss, row_weight=row_weight, score_row_loss=score_row_loss, expected=True
        )

    def training_loss(self, model: Callable[[Rows], Tensor], batch: Batch, temperature: float = 1.0) -> Tensor:
        """Returns the loss of one batch of one task, lesson included (see `kinfold.transfer.base.Teach`).

        Where rows have weights w, every mean over rows is Σ w · value / Σ w.
        """
        output = model(batch.x)
        y = batch.y.to(output.dtype) if batch.y.is_floating_point() else batch.y
        shaped = align(output, y)
        counts = None if batch.weight is None else batch.weight.to(output.dtype)
        if batch.soft is None or batch.soft_weight is None:
            return self.loss(shaped, y) if counts is None else self._counted(shaped, y, counts)
        weight = batch.soft_weight.to(output.dtype)
        soft = batch.soft.to(output.dtype)
        by_row = weight.ndim > 0
        if by_row or batch.labelled is not None or counts is not None:
            # The loss of the labelled rows times their share of the batch; no other label may enter, nor its weight.
            labelled = torch.ones_like(output[:, 0]) if batch.labelled is None else batch.labelled.to(output.dtype)
            share = _mean(labelled, counts)
            labelled = labelled if counts is None else labelled * counts
            weights = (self.row_weight(y) * labelled).sum().clamp_min(torch.finfo(labelled.dtype).tiny)
            own = labelled * (1.0 - weight) if by_row else labelled
            hard = (self.row_loss(shaped, y) * own).sum() / weights * share
        else:
            hard = self.loss(shaped, y)
        apart = by_row or counts is not None
        if self.kind == "classification":
            logits = output / temperature
            rows = F.cross_entropy(logits, soft, reduction="none") if apart else F.cross_entropy(logits, soft)
            taught = temperature**2 * rows
        else:
            target = soft.reshape(shaped.shape)
            taught = self.row_loss(shaped, target) if apart else self.loss(shaped, target)
        if by_row:
            return hard + _mean(weight * taught, counts)
        return (1.0 - weight) * hard + weight * (_mean(taught, counts) if apart else taught)

    def _counted(self, outputs: Tensor, y: Tensor, counts: Float[Tensor, " B"]) -> Tensor:
        """`loss`, of rows that count by weights."""
        return (self.row_loss(outputs, y) * counts).sum() / (self.row_weight(y) * counts).sum()

    def row_losses(self, outputs: Float[Tensor, "N C"], targets: Shaped[Tensor, "N *K"]) -> Float[Tensor, " N"]:
        """Returns the loss of each row of one task's outputs."""
        shaped = align(outputs, targets)
        return self.score_row_loss(shaped, targets.to(shaped.dtype) if targets.is_floating_point() else targets)

    def score(
        self,
        outputs: Float[Tensor, "N C"],
        targets: Shaped[Tensor, "N *K"],
        weights: Float[Tensor, " N"] | None = None,
    ) -> tuple[float, float]:
        """Returns (metric, oriented so that higher is better; loss) of one task's outputs. NaN where undefined.

        Rows count by their weights, where there are any.
        """
        shaped = align(outputs, targets)
        if not bool(shaped.isfinite().all()):
            return math.nan, math.nan
        of_metric = self.metric.weighted
        if weights is None or of_metric is None:
            value = self.metric.compute(shaped, targets)
        else:
            value = of_metric(shaped, targets, weights)
        return self.metric.oriented(value), self.mean_loss(outputs, targets, weights)

    def scores(
        self,
        outputs: Sequence[Float[Tensor, "_ C"]],
        targets: Sequence[Shaped[Tensor, "_ *K"]],
        weights: Sequence[Float[Tensor, " _"]] | None = None,
    ) -> list[tuple[float, float]]:
        """Returns `score` of each of several tasks: bit for bit the same, in fewer calls where these are the default's.

        Those are accuracy and cross-entropy of rows that count alike. A call takes as long as the arithmetic of
        hundreds of rows, and there are eight of them in each score.
        """
        if weights is not None:
            return [self.score(*given) for given in zip(outputs, targets, weights, strict=True)]
        usual = self.metric.compute is accuracy and _is_plain_cross_entropy(self.score_loss)
        usual = usual and all(map(_are_classes, targets))
        together = torch.cat(list(outputs)) if outputs and usual else None
        if together is None or not bool(together.sum().isfinite()):  # or finite, but for their sum
            return [self.score(*given) for given in zip(outputs, targets, strict=True)]
        lengths = [len(y) for y in targets]
        right = torch.split(together.max(1).indices == torch.cat(list(targets)), lengths)
        shares = torch.stack([own.count_nonzero() for own in right]).double() / torch.tensor(lengths)
        logs = torch.split(_log_probabilities(together), lengths)
        losses = [F.nll_loss(own, y) for own, y in zip(logs, targets, strict=True)]
        metrics = map(self.metric.oriented, shares.tolist())
        return list(zip(metrics, torch.stack(losses).tolist(), strict=True))

    def mean_loss(
        self,
        outputs: Float[Tensor, "N C"],
        targets: Shaped[Tensor, "N *K"],
        weights: Float[Tensor, " N"] | None = None,
    ) -> float:
        """Returns the loss of one task's outputs, of rows that count by their weights, where there are any."""
        shaped = align(outputs, targets)
        same = targets.to(shaped.dtype) if targets.is_floating_point() else targets
        if weights is None and _is_plain_cross_entropy(self.score_loss) and _are_classes(targets):
            return float(F.nll_loss(_log_probabilities(shaped), targets))
        if weights is None:
            return float(self.score_loss(shaped, same))
        losses, by_class = self.score_row_loss(shaped, same), _row_weight(self.score_loss)(same)
        return float((losses * weights).sum() / (by_class * weights).sum())


def align(output: Tensor, y: Tensor) -> Tensor:
    """Returns outputs [B, 1] as [B] where the targets are [B] values, which broadcasting would get wrong."""
    if y.is_floating_point() and y.ndim == 1 and output.ndim == 2 and output.shape[1] == 1:
        return output[:, 0]
    return output


def make_objective(
    kind: Kind,
    outputs: int,
    loss: LossFunction | None,
    metric: object,
    device: torch.device,
    dtype: torch.dtype,
) -> Objective:
    """Returns the objective from what the user gave, with defaults from the targets.

    Args:
        kind: classification or regression.
        outputs: C.
        loss: (outputs, targets) → scalar mean; modules are copied to the device. None: cross-entropy or squared
            error. Class weights must be those of a module (`nn.CrossEntropyLoss(weight=…)`) to be kept where only
            some rows are labelled.
        metric: None (accuracy, or R²), a `Metric`, a torchmetrics object, or a callable (outputs, targets) →
            number of which higher is better.
        device: where the loss runs.
        dtype: of the loss's own floating tensors, such as class weights.

    Raises:
        InputError: the metric is none of these.
    """
    if loss is None:
        loss = nn.CrossEntropyLoss() if kind == "classification" else nn.MSELoss()
    host = loss
    if isinstance(loss, nn.Module):
        host = copy.deepcopy(loss).to(device="cpu", dtype=dtype)
        loss = copy.deepcopy(loss).to(device=device, dtype=dtype)
    made = resolve_metric(metric, kind)
    if _is_plain_cross_entropy(loss):
        loss = ClassCrossEntropy()
    return Objective(kind, outputs, loss, _per_row(loss), _row_weight(loss), host, _per_row(host), made)


@final
class ClassCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy without weights, smoothing or targets to ignore: in fewer operations than torch takes for those.

    Example:
        >>> outputs, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
        >>> bool(ClassCrossEntropy()(outputs, targets).isclose(nn.CrossEntropyLoss()(outputs, targets)))
        True
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        if self.reduction != "mean" or input.ndim != 2 or target.ndim != 1:
            return super().forward(input, target)
        return -F.log_softmax(input, 1).gather(1, target[:, None]).mean()


def _are_classes(targets: Shaped[Tensor, "N *K"]) -> bool:
    return targets.ndim == 1 and not targets.is_floating_point()


def _log_probabilities(outputs: Float[Tensor, "N C"]) -> Float[Tensor, "N _"]:
    """The logarithm of softmax, of each row the same whatever rows are beside it.

    Torch's kernel takes a row's classes as a vector; those that do not fill one it adds up number by number. So they
    are filled up, with classes of no probability.
    """
    lanes = (64 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 32) // outputs.element_size()
    if outputs.dtype == torch.float32 and _FEWEST <= outputs.shape[1] < lanes:
        outputs = F.pad(outputs, (0, lanes - outputs.shape[1]), value=-math.inf)
    return F.log_softmax(outputs, 1)


def _is_plain_cross_entropy(loss: LossFunction) -> bool:
    return (
        type(loss) is nn.CrossEntropyLoss
        and (loss.weight, loss.label_smoothing, loss.reduction) == (None, 0.0, "mean")
        and loss.ignore_index < 0  # classes are numbered from 0
    )


def _per_row(loss: LossFunction) -> LossFunction:
    """Returns the loss of each row: by `reduction`, where the loss has one, else by calling it row by row."""
    if getattr(loss, "reduction", None) == "mean":  # calling it row by row would undo class weights
        each = copy.deepcopy(loss)
        each.reduction = "none"  # type: ignore[attr-defined]
        return lambda outputs, targets: each(outputs, targets).reshape(len(outputs), -1).mean(1)
    return torch.vmap(lambda output, y: loss(output[None], y[None]))


def _expected(
    row_loss: LossFunction, row_weight: Callable[[Tensor], Tensor], classes: int
) -> tuple[LossFunction, Callable[[Tensor], Tensor]]:
    """Returns the rows' losses, and their weights, that are expected under probabilities [B, C]."""

    def expected_loss(outputs: Tensor, probabilities: Tensor) -> Tensor:
        each = [row_loss(outputs, torch.full_like(probabilities[:, c], c, dtype=torch.int64)) for c in range(classes)]
        return (probabilities * torch.stack(each, 1)).sum(1)

    def expected_weight(probabilities: Tensor) -> Tensor:
        by_class = row_weight(torch.arange(classes, device=probabilities.device)).to(probabilities.dtype)
        return (probabilities * by_class).sum(1)

    return expected_loss, expected_weight


def _row_weight(loss: LossFunction) -> Callable[[Tensor], Tensor]:
    """Returns how much each row counts in the loss's mean: by class weight, where the loss divides by these."""
    by_class = loss.weight if isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) else None

    def weight(targets: Tensor) -> Tensor:
        if by_class is None or targets.is_floating_point():
            return torch.ones(len(targets), device=targets.device)
        return by_class[targets]

    return weight


def resolve_metric(metric: object, kind: Kind) -> Metric:
    """Returns the metric from None, a `Metric`, a torchmetrics object, or a callable (see `make_objective`)."""
    if metric is None:
        if kind == "classification":
            return Metric("accuracy", accuracy, accuracy=True, weighted=accuracy)
        return Metric("r2", r2, weighted=r2)
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, nn.Module) and callable(getattr(metric, "compute", None)):
        return _from_torchmetrics(metric)
    if callable(metric):
        return Metric(getattr(metric, "__name__", type(metric).__name__), lambda o, y: float(metric(o, y)))
    raise InputError(
        f"metric: {metric!r} is not a metric; give None, a kinfold.Metric, a torchmetrics object or a function "
        "(outputs, targets) -> number."
    )


def _from_torchmetrics(metric: nn.Module) -> Metric:
    higher = getattr(metric, "higher_is_better", None)
    if higher is None:
        raise InputError(
            f"metric: {type(metric).__name__} does not say whether higher is better; wrap it as "
            "kinfold.Metric(name, function, higher_is_better=...)."
        )
    compute = partial(_computed, copy.deepcopy(metric).cpu())  # which can be sent to other processes
    return Metric(type(metric).__name__, compute, bool(higher))


def _computed(metric: nn.Module, outputs: Tensor, targets: Tensor) -> float:
    metric.reset()  # type: ignore[operator]
    metric.update(outputs, targets.to(outputs.dtype) if targets.is_floating_point() else targets)  # type: ignore[operator]
    return float(metric.compute())  # type: ignore[operator]
