"""Measure the source: its size, its longest functions, import circles, repeated blocks, and how fast it starts.

python tools/structure.py [--start SECTION.h5ad]

Lines of code are lines with a token that is no comment, outside docstrings. Imports inside functions count, those for
type checkers do not. A repeated block is six or more equal lines of code in a row; imports and signatures are left out,
since tools share their parameters on purpose.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import sys
import tempfile
import time
import tokenize
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "sagefm"
MAX_LINES, BLOCK = 60, 6
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(text: str, tree: ast.Module) -> set[int]:
    """Numbers of the lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for part in body if isinstance(body, list) else ():  # docstrings, also those below attributes
            if (
                isinstance(part, ast.Expr)
                and isinstance(part.value, ast.Constant)
                and isinstance(part.value.value, str)
            ):
                lines.difference_update(range(part.lineno, part.end_lineno + 1))
    return lines


def imported(tree: ast.Module, modules: set[str]) -> set[str]:
    """Modules of the package that a module imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sagefm"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else str(node.module) for name in names}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, todo = set(), [start]
        while todo:
            new = graph.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        reach[start] = seen
    groups = {tuple(sorted(b for b in reach[a] if a in reach.get(b, ()))) for a in graph if a in reach[a]}
    return [list(group) for group in sorted(groups)]


def repeated(files: dict[str, list[tuple[int, str]]]) -> list[tuple[str, str]]:
    """Places of blocks of equal lines, each block once for a pair of places."""
    places = defaultdict(list)
    for name, lines in files.items():
        for i in range(len(lines) - BLOCK + 1):
            places[tuple(text for _, text in lines[i : i + BLOCK])].append((name, i))
    pairs = {(a, b) for found in places.values() for a in found for b in found if a < b}
    first = [(a, b) for a, b in pairs if ((a[0], a[1] - 1), (b[0], b[1] - 1)) not in pairs]
    return sorted((f"{a[0]}:{files[a[0]][a[1]][0]}", f"{b[0]}:{files[b[0]][b[1]][0]}") for a, b in first)


def start_ratio(section: str, n_runs: int = 3) -> str:
    """Seconds of ``sagefm embed`` against those of importing torch and scanpy, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "embed": ["-m", "sagefm.cli", "embed", section, "--model", "sagefm-mini", "--out", f"{folder}/out.h5ad"],
            "imports": ["-c", "import torch, scanpy"],
        }
        seconds = defaultdict(list)
        for _ in range(n_runs + 1):  # the first to warm up
            for name, command in commands.items():
                Path(folder, "out.h5ad").unlink(missing_ok=True)
                start = time.perf_counter()
                subprocess.run([sys.executable, *command], check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - start)
    embed, imports = (sorted(seconds[name][1:])[n_runs // 2] for name in commands)
    return f"{embed:.1f} s against {imports:.1f} s, {embed / imports:.2f} times"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", metavar="SECTION", help="section to embed")
    arguments = parser.parse_args()
    total, n_functions, long, graph, blocks, largest = 0, 0, [], {}, {}, []
    files = sorted(SOURCE.rglob("*.py"))
    named = {file: ".".join(file.relative_to(ROOT / "src").with_suffix("").parts) for file in files}
    named = {file: name.removesuffix(".__init__") for file, name in named.items()}
    for file, name in named.items():
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
        lines = code_lines(text, tree)
        total += len(lines)
        largest.append((len(text.splitlines()), name))
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS):
                n_functions += 1
                body = len(lines & set(range(node.body[0].lineno, node.end_lineno + 1)))
                if body > MAX_LINES:
                    long.append((body, f"{name}.{node.name}"))
        spans = [(n.lineno, n.end_lineno) for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
        spans += [(n.lineno, n.body[0].lineno - 1) for n in ast.walk(tree) if isinstance(n, FUNCTIONS)]
        kept = [n for n in sorted(lines) if not any(first <= n <= last for first, last in spans)]
        source = text.splitlines()
        blocks[name] = [(n, source[n - 1].strip()) for n in kept]
        graph[name] = imported(tree, set(named.values()))
    print(f"{total:,} lines of code in {len(files)} files; files over 350 lines: {sum(n > 350 for n, _ in largest)}")
    print(f"{len(long)} of {n_functions} functions have more than {MAX_LINES} lines of code:")
    for size, name in sorted(long, reverse=True):
        print(f"  {size:4d} {name}")
    found = circles(graph)
    print(f"{len(found)} import circles:", *(" ".join(group) for group in found), sep="\n  ")
    pairs = repeated(blocks)
    print(f"{len(pairs)} pairs of repeated blocks:", *(f"{a} ~ {b}" for a, b in pairs), sep="\n  ")
    if arguments.start:
        print("sagefm embed:", start_ratio(arguments.start))


if __name__ == "__main__":
    main()
