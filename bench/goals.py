"""The goals of the project, and whether the measures reach them.

Promise: every goal gets one line: met, not met, or not measured with the reason; the figure is always
shown. Goals are meant for the full scale on two cores with a warm cache; at the quick scale the lines only
show that this works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from bench.measure import Series
from bench.scenarios import COPY, ZSTD

OURS, PEER = "holdfast", "restic"
Key = tuple[str, str, str]
"""Scenario, step, program (or limit)."""
Results = Mapping[Key, Series]
Quantity = Literal["wall", "stored", "peak"]
WITH_MEMORY_GOAL = ("small", "random", "tar", "snapshots")


class Unmeasured(Exception):
    """A figure the goal needs is missing; the message names it."""


@dataclass(frozen=True)
class Goal:
    """One line of the table of goals."""

    text: str
    at_most: float
    figure: Callable[[Results], float]
    unit: str = ""

    def line(self, results: Results) -> str:
        """`goal ...: met (0.31, at most 0.33)`."""
        try:
            value = self.figure(results)
        except Unmeasured as missing:
            return f"goal {self.text}: not measured ({missing})"
        verdict = "met" if value <= self.at_most else "NOT MET"
        return f"goal {self.text}: {verdict} ({value:.3g}{self.unit}, at most {self.at_most:.3g}{self.unit})"


def _series(results: Results, scenario: str, step: str, program: str) -> Series:
    try:
        return results[scenario, step, program]
    except KeyError:
        raise Unmeasured(f"no {scenario}/{step} of {program}") from None


def _value(series: Series, quantity: Quantity) -> float:
    if quantity == "wall":
        return series.wall
    return series.stored if quantity == "stored" else series.peak


def ratio(scenario: str, step: str, quantity: Quantity, against: str = PEER) -> Callable[[Results], float]:
    """Ours divided by the other's."""

    def figure(results: Results) -> float:
        other = _value(_series(results, scenario, step, against), quantity)
        ours = _value(_series(results, scenario, step, OURS), quantity)
        return ours / other if other else float("inf")

    return figure


def new_share(results: Results) -> float:
    """How much an unchanged backup adds to the repository, as a share of what the first stored."""
    return _series(results, "small", "unchanged", OURS).added / _series(results, "small", "first", OURS).stored


def list_seconds(results: Results) -> float:
    """Seconds of `snapshots` on the repository of 1,000."""
    return _series(results, "snapshots", "list", OURS).wall


def highest_peak(results: Results) -> float:
    """The largest process of all our steps that have a memory goal, in MB."""
    peaks = [one.peak for (where, _, who), one in results.items() if who == OURS and where in WITH_MEMORY_GOAL]
    if not peaks:
        raise Unmeasured(f"nothing of {OURS}")
    return max(peaks) / 1e6


def growth(results: Results) -> float:
    """The peak on a file of 2 GiB divided by that on one of 256 MiB."""
    return _series(results, "random", "first", OURS).peak / _series(results, "eighth", "first", OURS).peak


GOALS: tuple[Goal, ...] = (
    Goal("small first: wall against restic", 1 / 3, ratio("small", "first", "wall")),
    Goal("small first: stored against restic", 0.70, ratio("small", "first", "stored")),
    Goal("small unchanged: wall against restic", 1 / 3, ratio("small", "unchanged", "wall")),
    Goal("small unchanged: new bytes as a share of the first", 0.01, new_share),
    Goal("random first: wall against restic", 1 / 2.5, ratio("random", "first", "wall")),
    Goal("tar first: wall against restic", 1 / 2, ratio("tar", "first", "wall")),
    Goal("tar first: wall against zstd -3 -T2", 1.2, ratio("tar", "first", "wall", ZSTD.name)),
    Goal("tar first: stored against restic", 1.0, ratio("tar", "first", "stored")),
    Goal("random restore: wall against restic", 1 / 1.5, ratio("random", "restore", "wall")),
    Goal("tar restore: wall against restic", 1 / 1.5, ratio("tar", "restore", "wall")),
    Goal("small restore: wall against restic", 1.0, ratio("small", "restore", "wall")),
    Goal("small restore: wall against cp -a", 1.5, ratio("small", "restore", "wall", COPY.name)),
    Goal("snapshots: wall on a repository of 1,000", 1.0, list_seconds, " s"),
    Goal("peak memory: highest of small, random, tar, snapshots", 250, highest_peak, " MB"),
    Goal("peak memory: a 2 GiB file against one of 256 MiB", 1.1, growth),
)
