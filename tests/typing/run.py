"""Run the type checkers over the cases beside this file, and compare what they report with what is marked.

A line that must fail ends in `# E: what is wrong`. Every other line must pass. A checker that sees it otherwise has
an entry in DEVIATIONS, with the reason; an entry that no longer holds fails too, so that the table stays true. The
code of docs/typing.md is a case as well, with `# error: what is wrong`; what its table says that a checker says of it
must be said.

    python tests/typing/run.py [--package FOLDER] [--show] [mypy] [mypy-pydantic] [pyright] [ty] [pyrefly]
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TOOLS = Path(sys.executable).parent
CASES = sorted(path for path in HERE.glob("*.py") if path.name not in ("run.py", "test_run.py"))
PAGE = ROOT / "docs" / "typing.md"
MARK = re.compile(r"# (?:E|error): (?P<what>.+)$")
LINE = re.compile(r"^(?:ERROR )?(?P<file>[^:\s]+\.py):(?P<line>\d+):(?:\S*:)?\s*(?P<message>.*)$")

Place: TypeAlias = tuple[str, int]  # file name, line from 1
Reports: TypeAlias = dict[Place, str]
Deviations: TypeAlias = Mapping[tuple[str, str, str], str]

# (checker, file, what the mark says, or the text of a line that must pass) -> why it deviates.
NO_CLASS_DECORATORS = "does not check the argument of a class decorator; the registry refuses it at import"
NOT_FROZEN = "reads frozen only from the class keyword, which would forbid `class X(ApiModel, EventModel)`"
DEVIATIONS: Deviations = {
    ("mypy", "declare.py", "frozen"): NOT_FROZEN,
    ("pyright", "declare.py", "frozen"): NOT_FROZEN,
    ("pyrefly", "declare.py", "frozen"): NOT_FROZEN,
    ("pyrefly", "declare.py", "a class that is no model"): NO_CLASS_DECORATORS,
    ("pyrefly", "declare.py", "a named class that is no model"): NO_CLASS_DECORATORS,
}


@dataclass(frozen=True, slots=True)
class Checker:
    """One type checker: how it is asked, and how its answer is read."""

    name: str
    command: Callable[[Path, Path], list[str]]  # package and a folder for its configuration -> without the cases
    read: Callable[[str], Iterator[tuple[str, int, str]]]
    # mypy's exit status 2, pyright's 2 and up: it could not do its work.
    broken_from: int = 2

    def reports(self, package: Path, cases: Sequence[Path]) -> Reports:
        """Return what the checker reports: place to message.

        Raises:
            RuntimeError: the checker could not do its work.
        """
        with tempfile.TemporaryDirectory() as folder:
            command = [*self.command(package, Path(folder)), *map(str, cases)]
            environment = {**os.environ, "MYPYPATH": str(package)}
            done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
        if done.returncode >= self.broken_from:
            raise RuntimeError(f"{self.name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        checked = {case.resolve() for case in cases}
        found: Reports = {}
        for file, line, message in self.read(done.stdout):
            case = (HERE / file).resolve()
            if case not in checked:
                continue  # in the package, which is checked by itself
            place = (case.name, first_decorator(case, line))
            found[place] = f"{found[place]}\n{message}" if place in found else message
        return found


def first_decorator(case: Path, line: int) -> int:
    """Return the line of a class's first decorator: mypy reports a wrong decorator at the class itself."""
    lines = case.read_text().splitlines()
    if not lines[line - 1].startswith("class "):
        return line
    while lines[line - 2].startswith("@"):
        line -= 1
    return line


def code_of(page: Path, folder: Path) -> Path:
    """Write the Python blocks of a page into a file, each line where it is on the page."""
    is_code = False
    lines: list[str] = []
    for line in page.read_text().splitlines():
        fence = line.startswith("```")
        is_code = line == "```python" if fence else is_code
        lines.append(line if is_code and not fence else "")
    case = folder / f"{page.stem}_{page.suffix[1:]}.py"
    case.write_text("\n".join(lines) + "\n")
    return case


def mypy(plugin: str) -> Callable[[Path, Path], list[str]]:
    def command(_package: Path, folder: Path) -> list[str]:
        config = folder / "mypy.ini"
        config.write_text(f"[mypy]\nstrict = True\nplugins = {plugin}\n")
        cache = folder / "mypy_cache"  # a kept one names the temporary folder of the run before
        options = [f"--config-file={config}", f"--cache-dir={cache}", "--no-error-summary", "--show-absolute-path"]
        return [str(TOOLS / "mypy"), *options]

    return command


def pyright(package: Path, folder: Path) -> list[str]:
    config = folder / "pyrightconfig.json"
    config.write_text(json.dumps({"typeCheckingMode": "strict", "extraPaths": [str(package)]}))
    return [str(TOOLS / "pyright"), "--outputjson", "--pythonpath", sys.executable, "-p", str(config)]


def ty(package: Path, _folder: Path) -> list[str]:
    places = ["--python", sys.prefix, "--extra-search-path", str(package)]
    return [str(TOOLS / "ty"), "check", "--output-format", "concise", "--no-progress", *places]


def pyrefly(package: Path, folder: Path) -> list[str]:
    config = folder / "pyrefly.toml"
    config.write_text(f"search-path = [{json.dumps(str(package))}]\n")
    options = ["--config", str(config), "--python-interpreter-path", sys.executable, "--output-format", "min-text"]
    return [str(TOOLS / "pyrefly"), "check", *options]


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


def compare(checker: str, reports: Reports, cases: Sequence[Path], deviations: Deviations) -> list[str]:
    """Return what is wrong, a line each: missing and surplus reports, deviations that no longer hold."""
    problems: list[str] = []
    expected = {key[1:] for key in deviations if key[0] == checker}
    for case in cases:
        for number, text in enumerate(case.read_text().splitlines(), 1):
            mark = MARK.search(text)
            what = mark["what"] if mark else text.strip()
            message = reports.get((case.name, number))
            if (message is not None) == (mark is not None):
                continue
            if (case.name, what) in expected:
                expected.discard((case.name, what))
                continue
            said = f"says {message!r}" if message is not None else "says nothing"
            problems.append(f"{case.name}:{number}: {checker} {said}: {what}")
    problems += [f"{name}: {checker} no longer deviates: {what}" for name, what in sorted(expected)]
    return problems


def quoted(page: Path) -> dict[str, list[str]]:
    """Return the parts of messages in a page's table, which has a column for each checker after the first one."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    return {checker: [row[column] for row in rows] for column, checker in enumerate(head) if column}


def unsaid(checker: str, reports: Reports, page: Path, case: Path) -> list[str]:
    """Return which quotations a checker does not say of the page's code."""
    said = [message for (file, _), message in reports.items() if file == case.name]
    parts = quoted(page).get(checker, [])
    return [f"{page.name}: {checker} never says: {part}" for part in parts if not any(part in one for one in said)]


def show(checker: str, reports: Reports, cases: Sequence[Path]) -> None:
    """Print each marked line with what the checker says about it."""
    for case in cases:
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
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        code = code_of(PAGE, Path(folder))
        cases = [*CASES, code]
        for checker, reports in zip(asked, pool.map(lambda one: one.reports(package, cases), asked), strict=True):
            problems += compare(checker.name, reports, cases, DEVIATIONS)
            problems += unsaid(checker.name, reports, PAGE, code)
            if arguments.show:
                show(checker.name, reports, cases)
    print(*problems, sep="\n")
    print(f"{len(cases)} files, {len(asked)} checkers, {len(DEVIATIONS)} accepted deviations, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
