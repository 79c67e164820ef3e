"""Writes the results as a page of Markdown."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from cases import CASES, Case
from contenders import CONTENDERS
from figures import Spread, faster_peers, ratio, spread, value, verdicts
from serve import CONNECTIONS, EVENTS, SERVED

__all__ = ["page", "section"]


def page(results: dict[str, Any]) -> str:
    """Write RESULTS.md: all versions of Python that one run measured."""
    machine = results["machine"]
    head = f"""# What it costs

Written by `scripts/bench`; do not edit. Measured on {machine["cpu"]}, {machine["cores"]} cores, {machine["system"]}.

**How.** Each contender runs in a process of its own, pinned to one and the same core. They take turns: one round each,
in an order that changes, {results["rounds"]} rounds in each of {results["processes"]} fresh processes. A figure is the
median (least – greatest) of the rounds; a ratio is taken between samples of the same round, so that a slow minute of
the machine slows both. Microseconds are CPU time of the whole process, but wall time where threads or sleeps are.

**The limit** is the same app written by hand: the endpoint appends to a list, and after the response a middleware
awaits the function directly (sync functions in one worker thread a request, sync dependencies in one an event). It
validates models, and it does nothing else: no isolation, copies, JSON, retries, drain. Nothing that keeps this
library's promises can reach it.

Every subscriber counts its calls, and a round in which one is missing fails.
"""
    return "\n".join([head, *(section(result) for result in results["pythons"])])


def section(result: dict[str, Any]) -> str:
    """Write the tables of one version of Python."""
    samples, served = result["samples"], result["served"]
    parts = [f"## CPython {result['version']}", f"With {_versions(result['versions'])}."]
    promised = verdicts(samples, served, result["version"])
    if promised:
        parts += [
            "### Promises",
            _table(
                ["", "promised", "measured", "kept"],
                [[one.title, one.promised, one.measured, "yes" if one.holds else "**no**"] for one in promised],
            ),
        ]
    if any(samples.values()):
        parts += ["### Beside the limit", _beside_the_limit(samples)]
    if any(name not in ("limit", "ours") for own in samples.values() for name in own):
        parts += ["### Peers, as a ratio to the limit", _peers(samples)]
        parts += [_semantics(result["semantics"]), _faster(samples)]
    if served:
        parts += ["### Under uvicorn", _served(served)]
    for heading, printed in result["scripts"].items():
        parts += [f"### {heading}", printed]
    if result["failed"]:
        parts += ["### Failed", "\n".join(f"- {line}" for line in result["failed"])]
    return "\n\n".join(parts) + "\n"


def _beside_the_limit(samples: Any) -> str:
    rows = []
    for case, own in _present(samples):
        row = [case.title]
        for name in ("limit", "ours"):
            row.append(_with_unit(spread([value(case, one) for one in own[name]]), case) if own.get(name) else "–")
        measured = ratio(case, samples, "ours")
        row.append("–" if measured is None else f"**{measured.median:.2f}** ({_range(measured)})")
        rows.append(row)
    return _table(["", "limit", "fastapi_events", "ratio"], rows)


def _peers(samples: Any) -> str:
    names = [name for name in CONTENDERS if name != "limit" and any(name in own for own in samples.values())]
    rows = []
    for case, _ in _present(samples):
        ratios = [ratio(case, samples, name) for name in names]
        rows.append([case.title, *("–" if one is None else _short(one.median) for one in ratios)])
    return _table(["", *(CONTENDERS[name].title for name in names)], rows)


def _semantics(semantics: dict[str, str]) -> str:
    lines = [
        f"- {CONTENDERS[name].title}: {words}." for name, words in semantics.items() if name not in ("limit", "ours")
    ]
    return "What they do differently (a dash above: cannot do it):\n\n" + "\n".join(lines)


def _faster(samples: Any) -> str:
    if not any("ours" in own for own in samples.values()):
        return "This library was not measured."
    faster = faster_peers(samples)
    if not faster:
        return "No peer was faster than this library in any case with an event."
    lines: dict[str, list[str]] = {}
    for case, name, its in faster:
        lines.setdefault(case.title, []).append(f"{CONTENDERS[name].title} {its:.2f}")
    rows = [[title, ", ".join(names)] for title, names in lines.items()]
    return "Faster than this library, with the semantics above:\n\n" + _table(["", "as a multiple of our time"], rows)


def _served(served: Any) -> str:
    rows = [
        [
            f"{CONTENDERS[name].title}, {events} {'event' if events == 1 else 'events'}",
            f"{_median(taken, 'rate'):,.0f}",
            f"{_median(taken, 'p50') * 1e3:.1f} ms",
            f"{_median(taken, 'p99') * 1e3:.1f} ms",
            f"{_median(taken, 'cpu') * 1e6:.0f} µs",
        ]
        for name in SERVED
        if name in served
        for events, taken in ((events, served[name][str(events)]) for events in EVENTS)
    ]
    words = (
        f"One worker on one core, uvloop and httptools; {CONNECTIONS} kept-alive connections from a process on another "
        "core, each sending when its answer is there. By name, one async subscriber. Medians."
    )
    return words + "\n\n" + _table(["", "requests/s", "p50", "p99", "server CPU a request"], rows)


def _present(samples: Any) -> Iterable[tuple[Case, Any]]:
    return ((case, samples[case.name]) for case in CASES if samples.get(case.name))


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _with_unit(measured: Spread, case: Case) -> str:
    return f"{_number(measured.median)} {case.unit} ({_number(measured.least)} – {_number(measured.most)})"


def _number(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 20 else f"{number:.1f}" if number >= 3 else f"{number:.2f}"


def _range(measured: Spread) -> str:
    return f"{_short(measured.least)} – {_short(measured.most)}"


def _median(taken: Sequence[dict[str, float]], figure: str) -> float:
    return statistics.median(one[figure] for one in taken)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
