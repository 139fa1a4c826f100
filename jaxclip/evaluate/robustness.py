"""Effective robustness: accuracy on shifted data above what reference models of that accuracy have (Taori et al. 2020).

Accuracies on two data sets lie near a line on logit axes for models that were trained in the standard way, and the
height above the line is the effective robustness (section 2 of the paper).
"""

from __future__ import annotations

import csv
import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxclip.errors import UserError
from jaxclip.evaluate.table import Column, Row

TASK, METRIC = "effective_robustness", "effective_robustness"
# The figure of a result that is compared with the reference models'.
ACCURACY = "acc1"
# The column of the mean over the shifted data sets.
MEAN = "mean of shifts"


def logit(accuracy: float | Float[np.ndarray, "models"]) -> Any:
    """The logarithm of the odds, of fractions; infinite at 0 and 1.

    >>> float(logit(0.5))
    0.0
    """
    with np.errstate(divide="ignore"):
        return np.log(accuracy) - np.log1p(-np.asarray(accuracy))


def from_logit(value: float | Float[np.ndarray, "models"]) -> Any:
    """The fraction of that logit.

    >>> float(from_logit(0.0))
    0.5
    """
    # Without an overflow, however large the logit is.
    return np.exp(-np.logaddexp(0, -np.asarray(value)))


class Fit(NamedTuple):
    """A line on logit axes: logit(shifted) = slope * logit(in-distribution) + intercept."""

    slope: float
    intercept: float

    def predicted(self, accuracy: float) -> float:
        """The accuracy on shifted data that goes with one on in-distribution data, both fractions.

        >>> round(Fit(1.0, 0.0).predicted(0.25), 12)
        0.25
        """
        return float(from_logit(self.slope * logit(accuracy) + self.intercept))


@dataclasses.dataclass(frozen=True)
class Reference:
    """Accuracies of reference models.

    Attributes:
      models: their names.
      in_distribution: the name of the data set that models of a kind are trained for.
      accuracy: on it, fractions.
      shifted: the accuracies on shifted data by the names of the data sets; NaN where one is not known.
    """

    models: tuple[str, ...]
    in_distribution: str
    accuracy: Float[np.ndarray, "models"]
    shifted: Mapping[str, Float[np.ndarray, "models"]]

    def fit(self, dataset: str) -> Fit:
        """The line of least squares on logit axes, of a shifted data set, over the models that have both figures."""
        known = np.isfinite(self.shifted[dataset])
        slope, intercept = np.polyfit(logit(self.accuracy[known]), logit(self.shifted[dataset][known]), 1)
        return Fit(float(slope), float(intercept))

    def effective(self, accuracies: Mapping[str, float]) -> dict[str, float]:
        """The effective robustness of a model on each shifted data set of which it has the accuracy.

        Args:
          accuracies: of the model, fractions by data set. Without the in-distribution one there is no result.
        """
        if self.in_distribution not in accuracies:
            return {}
        inside = accuracies[self.in_distribution]
        names = [name for name in self.shifted if name in accuracies]
        return {name: accuracies[name] - self.fit(name).predicted(inside) for name in names}


def read(path: pathlib.Path) -> Reference:
    """Reads a csv table of reference models: `model,IN_DISTRIBUTION,SHIFTED,...`, a line each.

    Figures are fractions, or percentages in the whole table if those of the first column are above 1. A cell may be
    empty; 0 and 100% have no logit and are refused.

    Raises:
      UserError: the table cannot be read, or a data set has fewer than two models of different in-distribution
        accuracy, through which there is no line.
    """
    try:
        lines = [line for line in csv.reader(path.read_text(encoding="utf-8-sig").splitlines()) if any(line)]
    except OSError as error:
        raise UserError(f"--robustness: {path} cannot be read: {error.strerror}; give a csv table") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"--robustness: {path} is no csv table in UTF-8: {error}") from None
    heading, *rows = [[cell.strip() for cell in line] for line in lines] or [[]]
    names = heading[1:]
    if len(names) < 2 or not all(names) or len(set(names)) < len(names):
        raise UserError(
            f"--robustness: {path} must begin with a line of names such as model,imagenet,imagenetv2: of the data set "
            "in distribution, and of different shifted ones"
        )
    wrong = next((row for row in rows if len(row) != len(heading)), None)
    if wrong is not None:
        raise UserError(f"--robustness: {path}: {wrong[0]} has {len(wrong) - 1} figures for {len(names)} data sets")
    figures = np.array([[_figure(cell, path, row[0]) for cell in row[1:]] for row in rows]).reshape(-1, len(names))
    accuracies = _fractions(figures, path, [row[0] for row in rows], names)
    reference = Reference(
        tuple(row[0] for row in rows),
        names[0],
        accuracies[:, 0],
        dict(zip(names[1:], accuracies[:, 1:].T, strict=True)),
    )
    for name, values in reference.shifted.items():
        if len(np.unique(reference.accuracy[np.isfinite(values)])) < 2:
            raise UserError(
                f"--robustness: {path} has fewer than two models of different {names[0]} accuracy with a figure of "
                f"{name}, and a line goes through two"
            )
    return reference


def with_robustness(rows: Sequence[Row], reference: Reference) -> list[Row]:
    """The same results with the effective robustness on each shifted data set, and its mean over those.

    Raises:
      UserError: no row has the accuracy in distribution and on a shifted data set.
    """
    extended = []
    for row in rows:
        found = reference.effective(accuracies_of(row))
        if found:
            found[MEAN] = float(np.mean(list(found.values())))
        further = {Column(name, TASK, METRIC): value for name, value in found.items()}
        extended.append(row._replace(figures={**row.figures, **further}))
    if all(len(before.figures) == len(after.figures) for before, after in zip(rows, extended, strict=True)):
        raise unmatched(reference)
    return extended


def unmatched(reference: Reference) -> UserError:
    """The error that no result can be compared with reference models."""
    return UserError(
        f"--robustness: no model has {ACCURACY} of {reference.in_distribution} and of one of "
        f"{', '.join(reference.shifted)}; the table's first line must name data sets as the results do"
    )


def accuracies_of(row: Row) -> dict[str, float]:
    """The accuracies of a model by data set."""
    known = {column.dataset: value for column, value in row.figures.items() if column.metric == ACCURACY}
    return {dataset: value for dataset, value in known.items() if value is not None}


def _figure(cell: str, path: pathlib.Path, model: str) -> float:
    """A cell as a number; NaN for an empty one."""
    try:
        value = float(cell.removesuffix("%")) if cell else math.nan
    except ValueError:
        value = math.inf
    if math.isinf(value) or math.isnan(value) and cell:
        raise UserError(f"--robustness: {path}: {cell} of {model} is no accuracy; leave unknown ones empty")
    return value


def _fractions(
    figures: Float[np.ndarray, "models datasets"], path: pathlib.Path, models: Sequence[str], names: Sequence[str]
) -> Float[np.ndarray, "models datasets"]:
    inside = figures[:, 0]
    if not np.isfinite(inside).all():
        model = models[int(np.argmin(np.isfinite(inside)))]
        raise UserError(f"--robustness: {path}: {model} has no accuracy on {names[0]}, the first data set")
    percentages = bool((inside > 1).any())
    if percentages and (inside <= 1).any():
        raise UserError(
            f"--robustness: {path}: {names[0]} has fractions and percentages: {models[int(np.argmin(inside))]} has "
            f"{inside.min():g} and {models[int(np.argmax(inside))]} {inside.max():g}; write all in one way"
        )
    largest = 100.0 if percentages else 1.0
    for model, row in zip(models, figures, strict=True):
        for name, value in zip(names, row, strict=True):
            if not (math.isnan(value) or 0 < value < largest):
                raise UserError(
                    f"--robustness: {path}: {value:g} of {model} on {name} must lie between 0 and {largest:g}, which "
                    "themselves have no logit; leave such a cell empty"
                )
    return figures / largest
