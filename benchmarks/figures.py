"""From samples to figures: medians, ratios of samples taken side by side, and whether a promise is kept."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cases import CASES, TARGETS, Case, Target

__all__ = ["Spread", "Verdict", "faster_peers", "geometric_mean_to_old", "ratio", "spread", "value", "verdicts"]

Samples = dict[str, dict[str, list[dict[str, float]]]]

OLD_FACTOR = 8.0  # how much faster than fastapi-events 0.12.2, over all cases
SERVED_RATE = 0.8  # of the requests a second without events, at one event a request
SERVED_CPU = 1.3  # of the CPU time a request without events, at ten events


@dataclass(frozen=True)
class Spread:
    """The least, the middle and the greatest of some numbers."""

    least: float
    median: float
    most: float


@dataclass(frozen=True)
class Verdict:
    """A promise and what came of it.

    Attributes:
        holds: whether `measured` is on the right side of `promised`.
    """

    title: str
    promised: str
    measured: str
    holds: bool


def spread(numbers: Sequence[float]) -> Spread:
    return Spread(min(numbers), statistics.median(numbers), max(numbers))


def value(case: Case, sample: dict[str, float]) -> float:
    """Return a sample's bytes, or its microseconds by the clock of the case."""
    return sample["bytes"] if case.kind == "memory" else sample[case.clock] * 1e6


def ratio(case: Case, samples: Samples, name: str, *, to: str = "limit", to_case: Case | None = None) -> Spread | None:
    """Return the ratios of a contender's samples to another's of the same rounds; None where one is missing."""
    base_case = to_case or case
    own, base = samples[case.name].get(name), samples.get(base_case.name, {}).get(to)
    if not own or not base or len(own) != len(base):
        return None
    return spread([value(case, one) / value(base_case, other) for one, other in zip(own, base, strict=True)])


def verdicts(samples: Samples, served: dict[str, Any], version: str) -> list[Verdict]:
    """Compare what was measured with every promise that it covers."""
    by_name = {case.name: case for case in CASES}
    found = []
    for target in TARGETS:
        case = by_name[target.case]
        if case.name not in samples:
            continue
        if target.to is None:
            measured = ratio(case, samples, "ours")
        else:
            measured = ratio(case, samples, "ours", to="ours", to_case=by_name[target.to])
        if measured is not None:
            found.append(_verdict(case, target, measured, version))
    mean = geometric_mean_to_old(samples)
    if mean is not None:
        found.append(
            Verdict(
                "faster than fastapi-events 0.12.2, geometric mean of all cases of time",
                f"≥ {OLD_FACTOR:g} ×",
                f"{mean:.1f} ×",
                mean >= OLD_FACTOR,
            )
        )
    return found + _served_verdicts(served)


def _verdict(case: Case, target: Target, measured: Spread, version: str) -> Verdict:
    eager = tuple(map(int, version.split(".")[:2])) >= (3, 12)
    most = target.most_eager if eager and target.most_eager is not None else target.most
    title = case.title if target.to is None else f"{case.title}, to 1 pattern"
    return Verdict(title, f"≤ {most:g}", f"{measured.median:.2f}", measured.median <= most)


def _served_verdicts(served: dict[str, Any]) -> list[Verdict]:
    found = []
    for reference, words in (("ours", "the same app with 0 events"), ("limit", "the hand-written app with 0 events")):
        if "ours" not in served or reference not in served:
            continue
        rate = _served_ratio(served, "rate", ("ours", "1"), (reference, "0"))
        found.append(
            Verdict(
                f"uvicorn: requests/s at 1 event, to {words}", f"≥ {SERVED_RATE}", f"{rate:.2f}", rate >= SERVED_RATE
            )
        )
    if "ours" in served:
        cpu = _served_ratio(served, "cpu", ("ours", "10"), ("ours", "0"))
        found.append(
            Verdict(
                "uvicorn: server CPU a request at 10 events, to the same app with 0 events",
                f"≤ {SERVED_CPU}",
                f"{cpu:.2f}",
                cpu <= SERVED_CPU,
            )
        )
    return found


def _served_ratio(served: dict[str, Any], figure: str, one: tuple[str, str], other: tuple[str, str]) -> float:
    pairs = zip(served[one[0]][one[1]], served[other[0]][other[1]], strict=True)
    return statistics.median(own[figure] / base[figure] for own, base in pairs)


def geometric_mean_to_old(samples: Samples) -> float | None:
    """Return how many times faster than 0.12.2 this library is, over the cases of time that both can do."""
    ratios = [
        measured.median
        for case in CASES
        if case.kind == "request" and case.name in samples
        if (measured := ratio(case, samples, "old", to="ours")) is not None
    ]
    return math.exp(statistics.fmean(map(math.log, ratios))) if ratios else None


def faster_peers(samples: Samples) -> list[tuple[Case, str, float]]:
    """Return the cases in which a peer was faster than this library: which, who, and their ratio."""
    return [
        (case, name, measured.median)
        for case in CASES
        if case.events
        for name in samples.get(case.name, {})
        if name not in ("limit", "ours")
        and (measured := ratio(case, samples, name, to="ours")) is not None
        and measured.median < 1
    ]
