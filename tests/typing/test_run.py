"""The runner fails where it must: a missing report, a surplus one, a deviation that is none any more."""

import sys
from pathlib import Path

import pytest

from tests.typing.run import MARK, Checker, code_of, compare, read_json, read_lines, unsaid

CASE = """\
import what_is_there
wrong()  # E: a mistake
right()
@decorator  # E: a class that is decorated wrongly
@another
class Decorated:
    pass
"""
MISTAKE, DECORATED = ("case.py", 2), ("case.py", 4)


@pytest.fixture
def case(tmp_path: Path) -> Path:
    path = tmp_path / "case.py"
    path.write_text(CASE)
    return path


def checker(output: str, status: int = 1) -> Checker:
    """Make a checker that prints this and ends with this status."""
    program = f"print({output!r}); raise SystemExit({status})"
    return Checker("fake", lambda package, folder: [sys.executable, "-c", program], read_lines)


def test_what_is_reported_as_marked_is_fine(case):
    assert compare("ty", {MISTAKE: "no", DECORATED: "no"}, [case], {}) == []


def test_a_missing_report_is_a_problem(case):
    assert compare("ty", {DECORATED: "no"}, [case], {}) == ["case.py:2: ty says nothing: a mistake"]


def test_a_surplus_report_is_a_problem(case):
    reports = {MISTAKE: "no", DECORATED: "no", ("case.py", 3): "I do not like it"}
    assert compare("ty", reports, [case], {}) == ["case.py:3: ty says 'I do not like it': right()"]


def test_a_report_of_another_file_does_not_count(case):
    assert compare("ty", {("other.py", 2): "no", DECORATED: "no"}, [case], {}) != []


@pytest.mark.parametrize(
    "key, reports",
    [(("ty", "case.py", "a mistake"), {}), (("ty", "case.py", "right()"), {MISTAKE: "no", ("case.py", 3): "no"})],
)
def test_a_deviation_is_accepted_of_that_checker_and_must_not_vanish(case, key, reports):
    reports = {**reports, DECORATED: "no"}
    deviations = {key: "for a reason"}
    assert compare("ty", reports, [case], deviations) == []
    assert len(compare("mypy", reports, [case], deviations)) == 1
    gone = compare("ty", {MISTAKE: "no", DECORATED: "no"}, [case], deviations)
    assert gone == [f"case.py: ty no longer deviates: {key[2]}"]


def test_what_checkers_print_is_read(case):
    output = "\n".join(
        [
            f"{case}:2: error: No overload variant  [call-overload]",  # mypy
            f"{case}:2: note: Possible overload variants:",
            f"{case}:3:5: error[invalid-argument-type] Expected `str`",  # ty
            f"ERROR {case}:6:1-10: Argument `type` is not assignable [bad-argument-type]",  # pyrefly, at the class
            f"{case.parent / 'package.py'}:1: error: not ours",
            "Found 3 errors",
        ]
    )
    assert checker(output).reports(case.parent, [case]) == {
        MISTAKE: "error: No overload variant  [call-overload]",
        ("case.py", 3): "error[invalid-argument-type] Expected `str`",
        DECORATED: "Argument `type` is not assignable [bad-argument-type]",
    }


def test_what_pyright_prints_is_read():
    diagnostic = '{"file": "case.py", "severity": "%s", "message": "no", "range": {"start": {"line": %d}}}'
    found = ", ".join([diagnostic % ("error", 1), diagnostic % ("warning", 3), diagnostic % ("information", 4)])
    assert [*read_json(f'{{"generalDiagnostics": [{found}]}}')] == [("case.py", 2, "no"), ("case.py", 4, "no")]


def test_a_checker_that_could_not_do_its_work_is_no_success(case):
    with pytest.raises(RuntimeError, match="fake ended with 2:\nno such option"):
        checker("no such option", 2).reports(case.parent, [case])


def test_the_code_of_a_page_keeps_its_lines_and_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nright()\nwrong()  # error: a mistake\n```\n\n```console\n$ ls\n```\n")
    case = code_of(page, tmp_path)
    lines = case.read_text().splitlines()
    assert case.name == "page_md.py"
    assert lines[3:5] == ["right()", "wrong()  # error: a mistake"]
    assert [line for line in lines if line] == lines[3:5]
    assert MARK.search(lines[4])


def test_what_a_page_quotes_must_be_said_of_its_code(tmp_path):
    page, code = tmp_path / "page.md", tmp_path / "page_md.py"
    page.write_text('| Mistake | ty | mypy |\n|---|---|---|\n| one | `cannot be "int"` | `no` |\n| two | `is read-only` | `no` |\n')
    reports = {("page_md.py", 2): 'R cannot be "int"', ("other.py", 1): "is read-only"}
    assert unsaid("ty", reports, page, code) == ["page.md: ty never says: is read-only"]
    assert unsaid("pyright", reports, page, code) == []
