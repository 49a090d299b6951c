"""Bad and odd inputs, and what every function that takes a slide has to do with each.

An oddity changes a slide that has everything on it. A function that reads what was changed must either give the very
results of the plain slide (``same``), or results without gaps (``fine``), or refuse with an error of ours, or one of
both where functions have minima of their own (``either``). One that doesn't read it must give the plain results.
Whoever refuses leaves the slide as it was.
"""

from catalogue.bench import Bench, Outcome, trials
from catalogue.functions import FUNCTIONS, PAIRS, PLOTS, REFUSED, SAME, SCREEN, Function, Kit, make_kit, plain_slide
from catalogue.oddities import ODDITIES, Oddity
from catalogue.slots import equal, get, remove

__all__ = [
    "FUNCTIONS",
    "ODDITIES",
    "PAIRS",
    "PLOTS",
    "REFUSED",
    "SAME",
    "SCREEN",
    "Bench",
    "Function",
    "Kit",
    "Oddity",
    "Outcome",
    "equal",
    "get",
    "make_kit",
    "plain_slide",
    "remove",
    "trials",
]
