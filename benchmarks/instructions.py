"""Counts instructions with valgrind's callgrind: they do not depend on the machine's mood, and repeat within 1 %.

Only the operations themselves are counted: counting is switched on and off around them. Valgrind is some fifty times
slower than the machine, so what the library does by the clock (it yields after some milliseconds) happens more often.
"""

import shutil
import subprocess
from pathlib import Path

from cases import CASES, Case
from contenders import CONTENDERS
from measure import Worker

__all__ = ["count_instructions"]

OPERATIONS = 20


def count_instructions(environment: Path, case_name: str, names: tuple[str, ...], cpu: int) -> None:
    """Print how many instructions one operation takes, and where the profile of each contender is."""
    if shutil.which("valgrind") is None or shutil.which("callgrind_control") is None:
        raise SystemExit("--callgrind needs valgrind: install your system's package of that name")
    case = next(case for case in CASES if case.name == case_name)
    base = 0.0
    print(f"{case.title}: instructions")
    for name in names:
        profile = environment / f"callgrind.{name}.{case.name}.out"
        counted = _counted(name, environment, case, profile, cpu)
        base = base or counted
        per_event = f", {counted / case.events:,.0f} an event" if case.events else ""
        print(
            f"  {CONTENDERS[name].title}: {counted:,.0f} an operation{per_event}, {counted / base:.2f} × the first"
            f" (callgrind_annotate {profile})"
        )


def _counted(name: str, environment: Path, case: Case, profile: Path, cpu: int) -> float:
    command = ["valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={profile}"]
    for old in profile.parent.glob(f"{profile.name}*"):
        old.unlink()
    with Worker(name, environment, cpu=cpu, seconds=0, command=command) as worker:
        if "cannot" in worker.ask(open=case.name):
            raise SystemExit(f"{CONTENDERS[name].title} cannot do {case.name}")
        pid = str(worker.process.pid)
        _control("--instr=on", pid)
        worker.ask(instructions=OPERATIONS)
        _control("--instr=off", pid)
        _control("--dump=bench", pid)
    profile.with_name(f"{profile.name}.1").replace(profile)  # what it dumped when told to; its own is for the exit
    for line in profile.read_text().splitlines():
        if line.startswith("totals:"):
            return int(line.split()[1]) / OPERATIONS
    raise SystemExit(f"callgrind wrote no total into {profile}")


def _control(*arguments: str) -> None:
    subprocess.run(["callgrind_control", *arguments], check=True, capture_output=True, text=True, timeout=60)
