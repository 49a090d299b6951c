"""Break lines of the package at random, one at a time, and count how many of the breaks the tests notice.

pip install cosmic-ray pytest-cov
OMP_NUM_THREADS=1 pytest -n auto --dist worksteal --cov=sagefm --cov-context=test  # which test runs which line
python scripts/mutation.py [--n 30] [--seed 0] [--jobs 2] [--paths src/sagefm/pp src/sagefm/tl src/sagefm/models]

A line is drawn first, then one of the changes that cosmic-ray knows for it (another operator, comparison or number, a
condition turned round, a loop left out). Each is made in a copy of the repository, where the tests that run the line go
through until one fails: a break that all of them pass is printed, for a test to be written or to be called harmless.
Of lines that run when the package is imported, as of decorators and constants, all tests of the file count. Lines
that no test runs count as unnoticed. Left out is what can't be seen from outside: annotations of types, imports for
type checkers, strict= of zip, whose lengths are equal.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from cosmic_ray.ast import get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from coverage import CoverageData
from tqdm.auto import tqdm

ROOT = Path(__file__).parents[1]
DEFAULT = ["src/sagefm/pp", "src/sagefm/tl", "src/sagefm/models", "src/sagefm/_utils.py"]
# Tests that fail on a sign of an age other than the code's, or start the whole suite's environment.
LEFT_OUT = re.compile(r"test_docs|test_tutorials|test_two_processes|killed_workers")
MAX_TESTS, TIMEOUT = 60, 300


def main() -> int:
    """Return 1 if a tenth of the breaks or more goes unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--paths", nargs="+", default=DEFAULT)
    parser.add_argument("--coverage", type=Path, default=ROOT / ".coverage")
    options = parser.parse_args()
    data = CoverageData(str(options.coverage))
    data.read()
    breadth = lines_by_test(data)
    rng = np.random.default_rng(options.seed)
    changes = possible_changes(options.paths)
    lines = sorted(changes)
    chosen = [lines[i] for i in rng.permutation(len(lines))[: options.n]]
    drawn = [(*line, changes[line][rng.integers(len(changes[line]))]) for line in chosen]
    print(f"{len(lines)} lines can be changed; {len(drawn)} are.")
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.jobs):
            copies.put(copy_repository(Path(folder) / f"{number}" / "main"))
        with ThreadPoolExecutor(options.jobs) as pool:
            found = list(
                tqdm(
                    pool.map(lambda change: is_noticed(change, data, breadth, copies), drawn),
                    total=len(drawn),
                    unit="break",
                )
            )
    for (path, line, (operator, occurrence)), (outcome, diff) in zip(drawn, found, strict=True):
        print(f"{outcome:10s} {path.relative_to(ROOT)}:{line} {operator} {occurrence}")
        if outcome != "noticed":
            print(diff)
    n_noticed = sum(outcome == "noticed" for outcome, _ in found)
    print(f"{n_noticed} of {len(found)} noticed ({n_noticed / len(found):.0%}).")
    return int(n_noticed <= 0.9 * len(found))


def possible_changes(paths: list[str]) -> dict[tuple[Path, int], list[tuple[str, int]]]:
    """Operators and occurrences by file and line."""
    files = [
        file for path in paths for file in ([ROOT / path] if path.endswith(".py") else (ROOT / path).rglob("*.py"))
    ]
    found = defaultdict(list)
    for file in files:
        source = file.read_text(encoding="utf-8")
        typed, lines = annotation_lines(source), source.splitlines()
        tree = get_ast(source)
        for name in operator_names():
            if "Decorator" in name or "Is_" in name.replace("Is_IsNot", ""):
                continue
            operator = get_operator(name)
            try:
                instance = operator()
            except TypeError:
                continue  # one that wants arguments
            occurrence = 0
            stack = [tree]
            while stack:  # in the order in which mutate_code counts
                node = stack.pop()
                for start, _ in instance.mutation_positions(node):
                    of_zip = name.endswith("ReplaceTrueWithFalse") and "strict=True" in lines[start[0] - 1]
                    if start[0] not in typed and not of_zip:
                        found[file, start[0]].append((name, occurrence))
                    occurrence += 1
                stack.extend(reversed(getattr(node, "children", [])))
    return dict(found)


def annotation_lines(source: str) -> set[int]:
    """Lines of signatures, imports for type checkers and annotated names, where ``A | B`` computes nothing."""
    import ast

    typed: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef):
            parts = [node.returns, *(argument.annotation for argument in [*node.args.args, *node.args.kwonlyargs])]
        elif isinstance(node, ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name):
            parts = [node.test] if node.test.id == "TYPE_CHECKING" else []
        for part in parts:
            if part is not None:
                typed.update(range(part.lineno, part.end_lineno + 1))
    return typed


def copy_repository(target: Path) -> Path:
    """Source and tests in a folder of their own, with the sections beside it."""
    target.mkdir(parents=True)
    for name in ("src", "tests", "docs", "scripts", "pyproject.toml"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target / name)
    shared = ROOT.parent / "shared"
    if shared.is_dir():
        (target.parent / "shared").symlink_to(shared)
    return target


def lines_by_test(data: CoverageData) -> Counter[str]:
    """How many lines each test runs."""
    found: Counter[str] = Counter()
    for file in data.measured_files():
        for contexts in data.contexts_by_lineno(file).values():
            found.update({context.split("|")[0] for context in contexts})
    return found


def is_noticed(
    change: tuple[Path, int, tuple[str, int]], data: CoverageData, breadth: Counter[str], copies: SimpleQueue[Path]
) -> tuple[str, str]:
    """Outcome and the change as a diff."""
    path, line, (operator, occurrence) = change
    source = path.read_text(encoding="utf-8")
    mutated = mutate_code(source, get_operator(operator)(), occurrence)
    diff = "".join(difflib.unified_diff(source.splitlines(True), mutated.splitlines(True), n=0))
    by_line = data.contexts_by_lineno(str(path))
    contexts = by_line.get(line, [])
    if contexts == [""]:  # run at import
        contexts = [context for found in by_line.values() for context in found]
    tests = sorted({context.split("|")[0] for context in contexts if context and not LEFT_OUT.search(context)})
    if not tests:
        return ("no test", diff)
    # Those that run the fewest lines tell most and are the fastest; then a spread of the others.
    tests.sort(key=lambda test: breadth[test])
    first, others = tests[: MAX_TESTS // 2], tests[MAX_TESTS // 2 :]
    tests = first + others[:: 1 + 2 * len(others) // MAX_TESTS]
    copy = copies.get()
    target = copy / path.relative_to(ROOT)
    try:
        target.write_text(mutated, encoding="utf-8")
        env = {**os.environ, "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:cov", *tests]
        try:
            done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return ("noticed", diff)  # it hangs
        return ("passed" if done.returncode == 0 else "noticed", diff)
    finally:
        target.write_text(source, encoding="utf-8")
        copies.put(copy)


if __name__ == "__main__":
    raise SystemExit(main())
