"""Run the type checkers over the cases beside this file, and compare what they report with what is marked.

A line that must fail ends in `# E: what is wrong`. Every other line must pass. A checker that sees it otherwise has
an entry in DEVIATIONS, with the reason; an entry that no longer holds fails too, so that the table stays true.

    python tests/typing/run.py [--package FOLDER] [--show] [mypy] [mypy-pydantic] [pyright] [ty] [pyrefly]
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TOOLS = Path(sys.executable).parent
CASES = sorted(path for path in HERE.glob("*.py") if path.name != "run.py")
MARK = re.compile(r"# E: (?P<what>.+)$")
LINE = re.compile(r"^(?:ERROR )?(?P<file>[^:\s]+\.py):(?P<line>\d+):(?:\S*:)?\s*(?P<message>.*)$")

# (checker, file, what the mark says, or the text of a line that must pass) -> why it deviates.
NO_CLASS_DECORATORS = "does not check the argument of a class decorator; the registry refuses it at import"
NOT_FROZEN = "reads frozen only from the class keyword, which would forbid `class X(ApiModel, EventModel)`"
DEVIATIONS: dict[tuple[str, str, str], str] = {
    ("mypy", "declare.py", "frozen"): NOT_FROZEN,
    ("pyright", "declare.py", "frozen"): NOT_FROZEN,
    ("pyrefly", "declare.py", "frozen"): NOT_FROZEN,
    ("pyrefly", "declare.py", "a class that is no model"): NO_CLASS_DECORATORS,
    ("pyrefly", "declare.py", "a named class that is no model"): NO_CLASS_DECORATORS,
}

Place: TypeAlias = tuple[str, int]
Reports: TypeAlias = dict[Place, str]


@dataclass(frozen=True, slots=True)
class Checker:
    """One type checker: how it is asked, and how its answer is read."""

    name: str
    command: Callable[[Path, Path], list[str]]
    read: Callable[[str], Iterator[tuple[str, int, str]]]
    # mypy's exit status 2, pyright's 2 and up: it could not do its work.
    broken_from: int = 2

    def reports(self, package: Path) -> Reports:
        """Return what the checker reports: place (file name, line from 1) to message.

        Raises:
            RuntimeError: the checker could not do its work.
        """
        with tempfile.TemporaryDirectory() as folder:
            command = self.command(package, Path(folder))
            environment = {**os.environ, "MYPYPATH": str(package)}
            done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
        if done.returncode >= self.broken_from:
            raise RuntimeError(f"{self.name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        found: Reports = {}
        for file, line, message in self.read(done.stdout):
            if (HERE / file).parent != HERE:
                continue  # in the package, which is checked by itself
            place = (Path(file).name, first_decorator(Path(file).name, line))
            found[place] = f"{found[place]}\n{message}" if place in found else message
        return found


def first_decorator(file: str, line: int) -> int:
    """Return the line of a class's first decorator: mypy reports a wrong decorator at the class itself."""
    lines = (HERE / file).read_text().splitlines()
    if not lines[line - 1].startswith("class "):
        return line
    while lines[line - 2].startswith("@"):
        line -= 1
    return line


def mypy(plugin: str) -> Callable[[Path, Path], list[str]]:
    def command(_package: Path, folder: Path) -> list[str]:
        config = folder / "mypy.ini"
        config.write_text(f"[mypy]\nstrict = True\nplugins = {plugin}\n")
        cache = ROOT / ".mypy_cache" / f"typing{plugin}"
        return [
            str(TOOLS / "mypy"),
            f"--config-file={config}",
            f"--cache-dir={cache}",
            "--no-error-summary",
            "--show-absolute-path",
            *map(str, CASES),
        ]

    return command


def pyright(package: Path, folder: Path) -> list[str]:
    config = folder / "pyrightconfig.json"
    config.write_text(json.dumps({"typeCheckingMode": "strict", "extraPaths": [str(package)]}))
    options = ["--outputjson", "--pythonpath", sys.executable, "-p", str(config)]
    return [str(TOOLS / "pyright"), *options, *map(str, CASES)]


def ty(package: Path, _folder: Path) -> list[str]:
    places = ["--python", sys.prefix, "--extra-search-path", str(package)]
    return [str(TOOLS / "ty"), "check", "--output-format", "concise", "--no-progress", *places, *map(str, CASES)]


def pyrefly(package: Path, folder: Path) -> list[str]:
    config = folder / "pyrefly.toml"
    config.write_text(f"search-path = [{json.dumps(str(package))}]\n")
    options = ["--config", str(config), "--python-interpreter-path", sys.executable, "--output-format", "min-text"]
    return [str(TOOLS / "pyrefly"), "check", *options, *map(str, CASES)]


def read_lines(output: str) -> Iterator[tuple[str, int, str]]:
    for match in map(LINE.match, output.splitlines()):
        if match and not match["message"].startswith("note:"):
            yield match["file"], int(match["line"]), match["message"]


def read_json(output: str) -> Iterator[tuple[str, int, str]]:
    diagnostics: list[dict[str, Any]] = json.loads(output)["generalDiagnostics"]
    for diagnostic in diagnostics:
        if diagnostic["severity"] != "information":
            yield diagnostic["file"], diagnostic["range"]["start"]["line"] + 1, diagnostic["message"]


CHECKERS = (
    Checker("mypy", mypy(""), read_lines),
    Checker("mypy-pydantic", mypy("pydantic.mypy"), read_lines),
    Checker("pyright", pyright, read_json),
    Checker("ty", ty, read_lines),
    Checker("pyrefly", pyrefly, read_lines),
)


def compare(checker: str, reports: Reports) -> list[str]:
    """Return what is wrong, a line each: missing and surplus reports, deviations that no longer hold."""
    problems: list[str] = []
    deviations = {key[1:] for key in DEVIATIONS if key[0] == checker}
    for case in CASES:
        for number, text in enumerate(case.read_text().splitlines(), 1):
            mark = MARK.search(text)
            what = mark["what"] if mark else text.strip()
            message = reports.get((case.name, number))
            if (message is not None) == (mark is not None):
                continue
            if (case.name, what) in deviations:
                deviations.discard((case.name, what))
                continue
            said = f"says {message!r}" if message else "says nothing"
            problems.append(f"{case.name}:{number}: {checker} {said}: {what}")
    problems += [f"{name}: {checker} no longer deviates: {what}" for name, what in sorted(deviations)]
    return problems


def show(checker: str, reports: Reports) -> None:
    """Print each marked line with what the checker says about it."""
    for case in CASES:
        for number, text in enumerate(case.read_text().splitlines(), 1):
            if (mark := MARK.search(text)) and (message := reports.get((case.name, number))):
                print(f"\n{checker} {case.name}:{number} ({mark['what']})\n    {message}".replace("\n", "\n    "))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--package", type=Path, default=ROOT, help="the folder that holds fastapi_events")
    parser.add_argument("--show", action="store_true", help="print what is said about each line that must fail")
    parser.add_argument("checkers", nargs="*", metavar="checker", help="default: all")
    arguments = parser.parse_args()
    asked = [checker for checker in CHECKERS if checker.name in arguments.checkers or not arguments.checkers]
    package: Path = arguments.package.resolve()
    problems: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        for checker, reports in zip(asked, pool.map(lambda one: one.reports(package), asked), strict=True):
            problems += compare(checker.name, reports)
            if arguments.show:
                show(checker.name, reports)
    print(*problems, sep="\n")
    print(f"{len(CASES)} files, {len(asked)} checkers, {len(DEVIATIONS)} accepted deviations, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
