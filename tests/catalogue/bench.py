"""A trial of a function on an odd slide."""

from __future__ import annotations

import copy
import inspect
import re
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

import sagefm as sg
from catalogue.functions import EITHER, FUNCTIONS, PLOTS, REFUSED, SAME, Function, make_kit, plain_slide
from catalogue.oddities import ODDITIES, Oddity
from catalogue.slots import differences, equal, gaps, get, remove, state

SOURCE = Path(inspect.getfile(sg)).parent


@dataclass(frozen=True)
class Outcome:
    """What a function did with an odd slide: right, refused or wrong; and the message, or what is wrong."""

    kind: str
    text: str = ""
    detail: str = ""


class Bench:
    """The plain slide with everything on it, and what each function gives there."""

    def __init__(self) -> None:
        self.plain = plain_slide()
        self.kit = make_kit(self.plain)
        self.returned: dict[str, Any] = {}
        self.written: dict[str, dict[str, Any]] = {}
        for name, function in FUNCTIONS.items():
            self.returned[name] = function.call(self.plain, self.kit)
            # Later functions may add to it.
            self.written[name] = {slot: copy.deepcopy(get(self.plain, slot)) for slot in function.writes}
        self.plain.uns.pop("truth")

    def trial(self, oddity: Oddity, name: str) -> Outcome:
        """Run a function on an odd slide, and judge what it does."""
        function = (FUNCTIONS | PLOTS)[name]
        adata = self.plain.copy()
        changed = oddity.change(adata)
        adata = adata if changed is None else changed
        for slot in function.writes:
            remove(adata, slot)
        before = state(adata)
        expected = oddity.expected(name, function)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.filterwarnings("error", category=RuntimeWarning, module="sagefm")
                returned = function.call(adata, self.kit)
        except Exception as error:  # noqa: BLE001 any of them is judged
            return self._judge_error(error, oddity, expected, differences(before, state(adata)))
        finally:
            plt.close("all")
        if expected == REFUSED:
            return Outcome("wrong", "was taken")
        after = state(adata)
        others = [slot for slot in differences(before, after) if not _written(slot, function)]
        if others:
            return Outcome("wrong", f"changed {others}")
        if expected == SAME and name in FUNCTIONS:
            for slot, value in self.written[name].items():
                if not equal(value, get(adata, slot)):
                    return Outcome("wrong", f"another {slot}")
            if not equal(self.returned[name], returned):
                return Outcome("wrong", "another result")
        for slot in function.writes:
            if gap := gaps(get(adata, slot)):
                return Outcome("wrong", f"{slot} {gap}")
        if gap := gaps(returned):
            return Outcome("wrong", f"result {gap}")
        return Outcome("right")

    def _judge_error(self, error: Exception, oddity: Oddity, expected: str, changed: list[str]) -> Outcome:
        message = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
        frames = traceback.extract_tb(error.__traceback__)
        detail = f"{type(error).__name__} at {frames[-1].filename}:{frames[-1].lineno}"
        if changed:
            return Outcome("wrong", f"refused, but changed {changed}", detail)
        if SOURCE not in Path(frames[-1].filename).parents or not isinstance(error, ValueError | TypeError | KeyError):
            return Outcome("wrong", f"{type(error).__name__}: {message}", detail)
        if expected not in (REFUSED, EITHER):
            return Outcome("wrong", f"refused: {message}", detail)
        if not re.search(oddity.match, str(message)):
            return Outcome("wrong", f"message: {message}", detail)
        return Outcome("refused", str(message))


# What a tool may write for the next one, when it is not there yet.
BY_THE_WAY = ("var/sage_gene", "uns/sage_genes", "uns/pseudospot")


def _written(slot: str, function: Function) -> bool:
    return any(f"{name}/".startswith(f"{slot}/") for name in (*function.writes, *BY_THE_WAY))


def trials(bench: Bench, names: Iterable[str] | None = None) -> Iterator[tuple[Oddity, str, Outcome]]:
    """Every oddity on every function."""
    for oddity in ODDITIES:
        for name in names or (*FUNCTIONS, *PLOTS):
            yield oddity, name, bench.trial(oddity, name)
