"""Measures and prints; after a full run writes RESULTS.md and the picture. Started by scripts/bench."""

import argparse
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from cases import CASES, TARGETS
from contenders import CONTENDERS
from instructions import count_instructions
from measure import HERE, Effort, environment_of, measure, process_environment
from picture import draw
from report import page, section
from serve import SERVED, measure_servers

__all__: list[str] = []

SHARED = ("starlette", "pydantic", "anyio", "uvicorn", "uvloop", "httptools")
RAW = "results.json"  # in the environments' folder; --redraw reads it
SCRIPTS = {"sqs": "Forwarding to SQS", "dependencies": "Who else calls subscribers with dependencies"}  # headings
SLOW = {"memory-100000", *SCRIPTS}  # left out of --quick
PICTURE = HERE.parent / "docs" / "benchmarks.svg"


def main() -> None:
    options = _options()
    if options.redraw:
        _write(json.loads((options.environments[0].parent / RAW).read_text()))
        return
    cpus = sorted(os.sched_getaffinity(0))
    if options.callgrind:
        names = tuple(options.contender or ("limit", "ours"))
        for case_name in options.callgrind:
            count_instructions(options.environments[0], case_name, names, cpus[0])
        return
    effort = Effort(quick=options.quick, rounds=options.rounds)
    results: dict[str, Any] = {
        "machine": _machine(),
        "processes": effort.processes,
        "rounds": effort.rounds,
        "pythons": [],
    }
    for environment in options.environments:
        result = _measured(environment, options, effort, (cpus[0], cpus[-1]))
        results["pythons"].append(result)
        print(section(result), flush=True)
    whole = not (options.quick or options.case or options.contender or options.rounds)
    if whole:
        (options.environments[0].parent / RAW).write_text(json.dumps(results))
        _write(results)
    if any(result["failed"] for result in results["pythons"]):
        raise SystemExit("something failed: see above")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--environments", nargs="+", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--python", action="append", help="an interpreter to measure; may be repeated")
    parser.add_argument("--quick", action="store_true", help="a rough look in under a minute; writes nothing")
    parser.add_argument("--rounds", type=int, help="rounds in each process; writes nothing")
    parser.add_argument(
        "--case",
        action="append",
        choices=[*(case.name for case in CASES), "uvicorn", *SCRIPTS],
        metavar="CASE",
        help="only this case; may be repeated. One of: %(choices)s",
    )
    parser.add_argument(
        "--contender",
        action="append",
        choices=list(CONTENDERS),
        metavar="NAME",
        help="only this one, beside the limit; may be repeated. One of: %(choices)s",
    )
    parser.add_argument(
        "--callgrind",
        action="append",
        choices=[case.name for case in CASES],
        metavar="CASE",
        help="count the instructions of one operation instead, with valgrind; may be repeated",
    )
    parser.add_argument("--redraw", action="store_true", help="write RESULTS.md again from the last full run's samples")
    return parser.parse_args()


def _measured(environment: Path, options: argparse.Namespace, effort: Effort, cpus: tuple[int, int]) -> dict[str, Any]:
    wanted = set(options.case or [*(case.name for case in CASES), "uvicorn", *SCRIPTS])
    if options.quick and not options.case:
        wanted -= SLOW
    wanted |= {target.to for target in TARGETS if target.to and target.case in wanted}
    names = ["limit", *(name for name in CONTENDERS if name != "limit" and name in (options.contender or CONTENDERS))]
    cases = [case for case in CASES if case.name in wanted]
    measured = measure(environment, cases, names, effort, cpus[0])
    served: dict[str, Any] = {}
    if "uvicorn" in wanted:
        started = [name for name in SERVED if name in names]
        try:
            served = measure_servers(environment, started, effort, cpus)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            measured["failed"].append(f"uvicorn: {error}")
    scripts = {}
    for name in [name for name in SCRIPTS if name in wanted]:
        try:
            scripts[SCRIPTS[name]] = _printed(environment, name)
        except subprocess.SubprocessError as error:
            measured["failed"].append(f"{name}: {error}")
    return {
        "version": _python_of(environment, "import platform; print(platform.python_version())").strip(),
        "versions": _versions(environment, names),
        "served": served,
        "scripts": scripts,
        **measured,
    }


def _printed(environment: Path, script: str) -> str:
    """Return the tables that a comparison of another kind prints; it measures in an environment of its own."""
    command = [str(environment / "scripts" / "bin" / "python"), str(HERE / f"{script}.py")]
    if script == "sqs":
        command += ["--quick", "--old", str(environment_of("old", environment))]  # in full it takes ten minutes
    variables = process_environment("ours")
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, timeout=300, env=variables
    ).stdout.strip()


def _versions(environment: Path, names: list[str]) -> dict[str, str]:
    peers = [package for name in names if (package := CONTENDERS[name].package)]
    code = (
        "import sys; from importlib.metadata import version; "
        "print(*(f'{name} {version(name)}' for name in sys.argv[1:]), sep='\\n')"
    )
    found = _python_of(environment, code, *SHARED, *(one for one in peers if one not in (*SHARED, "fastapi-events")))
    return dict(line.split(" ", 1) for line in found.splitlines())


def _python_of(environment: Path, code: str, *arguments: str) -> str:
    command = [str(environment_of("limit", environment)), "-c", code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _machine() -> dict[str, Any]:
    """Describe the kind of machine, and nothing that tells which one it is."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "system": f"{platform.system()} {platform.machine()}"}


def _write(results: dict[str, Any]) -> None:
    (HERE / "RESULTS.md").write_text(page(results))
    newest = results["pythons"][-1]
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(draw(newest["samples"], newest["version"]))


if __name__ == "__main__":
    main()
