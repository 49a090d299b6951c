"""What the protocol is to do, from a TOML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sagefm._slides import SUFFIXES, find_sections, is_visium, list_sections, section_name
from sagefm._utils import check_choice, check_whole, get_device, shorten
from sagefm.datasets._oscc import LEFT_OUT, oscc_classes
from sagefm.tl._labels.classifiers import KINDS, MAX_FOLDS, PAPER_GRIDS, SCALES, list_settings
from sagefm.tl._labels.network import N_UNITS

TASKS = ("clustering", "heterogeneity", "annotation", "composition", "imputation")
# What has to be asked for: it takes a model as long as all other tasks together.
ON_REQUEST = ("imputation",)
EXPRESSIONS = ("raw", "log1p", "scaled", "normalized")
# What the fields' types are called in messages.
WORDS = {
    "str": "text",
    "int": "a whole number",
    "bool": "true or false",
    "tuple[str, ...]": 'a list of names, such as ["a", "b"]',
    "tuple[int, ...]": "a list of whole numbers, such as [1, 2]",
}
EMBEDDINGS = ("nichepca", "mofa", "mofa_by_slide")
# The paper's tasks: 8 + 4 sections of OSCC, 15 + 4 of glioblastoma, and HEST-1k. Settings of the user come first.
HELD_OUT = {"group_key": "sample", "pooled": True, "param_grid": PAPER_GRIDS, "n_bootstraps": 30}
PRESETS: dict[str, dict[str, Any]] = {
    "oscc": HELD_OUT
    | {
        "tasks": ["annotation"],
        "label_key": "pathologist",
        "merge": oscc_classes() | dict.fromkeys(LEFT_OUT, ""),
        "n_folds": 2,
        "published": "oscc",
    },
    "gbm": HELD_OUT | {"tasks": ["composition"], "n_folds": 4, "n_units": [64, 128, 256], "classifiers": ["forest"]},
    "clustering": {"tasks": ["clustering", "heterogeneity"]},
}


@dataclass(frozen=True)
class Representation:
    """One representation: exactly one of ``model``, ``obsm``, ``expression`` and ``embedding``."""

    name: str
    model: str | None = None  # name or path; {group} in a path: models that were trained without that group
    obsm: str | None = None  # key that the sections bring
    expression: str | None = None  # counts as they are, log1p, log1p and z-scored, at a common depth and log1p
    embedding: str | None = None  # a baseline of tl; mofa_by_slide centers each slide by itself
    pca: int | None = None
    neighbors: bool = False  # mean of the spot and its neighbors, before PCA
    tasks: tuple[str, ...] = TASKS
    classifiers: tuple[str, ...] | None = None  # those of the annotation task by default
    n_bootstraps: int | None = None
    scale: str = "auto"  # standardised within slides, or not, for held-out tasks; see tl.annotate
    allow_seen: bool = False  # take a model that was trained on the groups it is tried on

    def __post_init__(self) -> None:
        named = [key for key in ("model", "obsm", "expression", "embedding") if getattr(self, key) is not None]
        if len(named) != 1:
            raise ValueError(f"representation {self.name!r} has to name one of model, obsm, expression, embedding.")
        known = {"expression": EXPRESSIONS, "embedding": EMBEDDINGS, "scale": SCALES}
        known |= {"tasks": TASKS, "classifiers": KINDS}
        _check_values(self, f"representation {self.name!r}: ", known, {"pca": 1, "n_bootstraps": 0})
        if self.expression is None and (self.pca is not None or self.neighbors):
            raise ValueError(f"representation {self.name!r}: pca and neighbors go with expression.")

    @property
    def by_group(self) -> bool:
        """Whether it is several, one for each held-out group."""
        return "{group}" in (self.model or "")


@dataclass(frozen=True)
class Config:
    """The protocol's settings; :func:`read` makes one of a file, a folder or a mapping."""

    sections: tuple[str, ...]
    representations: tuple[Representation, ...]
    tasks: tuple[str, ...] = TASKS
    group_key: str = "donor"
    tissue_key: str | None = "tissue"
    label_key: str | None = None
    target_key: str | None = None
    library_key: str | None = None
    layer: str | None = None
    merge: Mapping[str, str | None] = field(default_factory=dict)
    train: tuple[str, ...] = ()  # sections or groups; all others than those tested by default
    test: tuple[str, ...] = ()  # sections or groups; each group in turn by default
    baseline: str | None = None  # representation that others are tested against
    pooled: bool = False  # score the tested groups as one
    classifiers: tuple[str, ...] = ("forest", "mlp")
    param_grid: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by classifier; our own by default
    n_folds: int = MAX_FOLDS  # of cross-validation among the groups of training
    n_units: tuple[int, ...] = (N_UNITS,)  # of the networks for composition, to choose from
    n_bootstraps: int = 30
    n_repeats: int = 5
    n_clusters: int | None = None
    title: str = "Evaluation"
    published: str | None = None  # task of the paper that annotation repeats: "oscc"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        names = [representation.name for representation in self.representations]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"representations need different names, and one at least: {names}.")
        known = {"tasks": TASKS, "classifiers": KINDS, "published": ("oscc",), "baseline": names}
        least = {"n_bootstraps": 0, "n_repeats": 1, "n_clusters": 2, "n_folds": 2, "seed": 0}
        _check_values(self, "", known, least)
        get_device(self.device)
        if not self.tasks or not self.classifiers:
            raise ValueError("tasks and classifiers have to name one at least.")
        for kind, grid in self.param_grid.items():
            check_choice("param_grid", kind, KINDS)
            list_settings(kind, grid)
        if self.pooled and (not self.test or any(entry.by_group for entry in self.representations)):
            raise ValueError("pooled scores the sections in test as one: set test, and take one model for all of them.")
        for task, key in (("annotation", "label_key"), ("composition", "target_key")):
            if task in self.tasks and getattr(self, key) is None:
                raise ValueError(f"the task {task!r} needs {key}. Set it, or leave the task out of tasks.")

    def tasks_of(self, representation: Representation) -> list[str]:
        """What is to be done with a representation."""
        return [task for task in self.tasks if task in representation.tasks]


def default_representations(model: str) -> list[dict[str, Any]]:
    """The model and the plain baselines. MOFA takes long to fit, so it has to be asked for."""
    plain = [
        {"name": f"{name} PCA(200)" if pca else name, "expression": kind, **({"pca": 200} if pca else {})}
        for name, kind in (("raw", "raw"), ("log1p", "log1p"), ("log1p z-scored", "scaled"))
        for pca in (True, False)
    ]
    return [
        {"name": Path(model).stem, "model": model},
        *plain,
        {"name": "NichePCA", "embedding": "nichepca"},
    ]


def paper_representations(model: str) -> list[dict[str, Any]]:
    """The three that the paper compares."""
    return [
        {"name": Path(model).stem, "model": model},
        {"name": "MOFA", "embedding": "mofa"},
        {"name": "expression", "expression": "log1p"},
    ]


def read(config: str | Path | Mapping[str, Any], preset: str | None = None) -> Config:
    """Settings of a TOML file, of a folder of sections (with defaults), or of a mapping.

    Paths in a file count from the file's folder. What the settings leave out comes from the preset.
    """
    import tomllib

    if preset is not None:
        check_choice("preset", preset, tuple(PRESETS))
    if isinstance(config, Mapping):
        return _build(dict(config), Path(), preset)
    path = Path(config)
    if path.is_dir():
        return _build({"sections": str(path.absolute())}, Path(), preset)
    if not path.exists():
        raise FileNotFoundError(f"no configuration at {path}.")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    return _build(values, path.absolute().parent, preset)


def _build(values: dict[str, Any], folder: Path, preset: str | None) -> Config:
    values = (PRESETS[preset] if preset else {}) | values
    sections = _sections(values.pop("sections", None), folder, values.pop("exclude", ()))
    model = _located(str(values.pop("model", "sage-fm-hest1k")), folder)
    if "tasks" not in values:  # those that the data allow
        needs = {"annotation": "label_key", "composition": "target_key"}
        possible = [task for task in TASKS if task not in needs or values.get(needs[task])]
        values["tasks"] = [task for task in possible if task not in ON_REQUEST]
    representations = values.pop("representations", None)
    if representations is None:
        representations = paper_representations(model) if preset else default_representations(model)
    if not isinstance(representations, list) or not all(isinstance(entry, Mapping) for entry in representations):
        raise TypeError("representations has to be a list of tables, [[representations]].")
    made = []
    for entry in representations:
        entry = dict(entry)
        if "name" not in entry:
            raise KeyError("a representation lacks 'name'.")
        if entry.get("model"):
            entry["model"] = _located(str(entry["model"]), folder)
        made.append(_fill(Representation, entry, f"representation {entry['name']!r}"))
    if "merge" in values:
        if not isinstance(values["merge"], Mapping):
            raise TypeError(f"merge has to be a table of labels and classes, got {values['merge']!r}.")
        # TOML has no null: an empty class leaves spots out.
        values["merge"] = {label: name or None for label, name in values["merge"].items()}
    return _fill(Config, {**values, "sections": sections, "representations": tuple(made)}, "the configuration")


def _fill(kind: type, values: Mapping[str, Any], what: str) -> Any:
    known = {entry.name: entry for entry in fields(kind)}
    if unknown := [name for name in values if name not in known]:
        raise KeyError(f"{unknown[0]!r} is no setting of {what}; there are {sorted(known)}.")
    for name, value in values.items():
        _check_type(f"{name} of {what}", value, str(known[name].type))
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _check_type(name: str, value: Any, annotation: str) -> None:
    """Refuse a value that the field's annotation doesn't allow."""
    kind = annotation.removesuffix(" | None")
    if kind not in WORDS or (value is None and kind != annotation):
        return
    if kind.startswith("tuple"):
        of = kind.removeprefix("tuple[").removesuffix(", ...]")
        is_right = isinstance(value, list | tuple) and all(type(entry).__name__ == of for entry in value)
    else:
        is_right = type(value).__name__ == kind
    if not is_right:
        raise TypeError(f"{name} has to be {WORDS[kind]}, got {value!r}.")


def _sections(given: Any, folder: Path, exclude: Any) -> tuple[str, ...]:
    """Files, in the order given; a folder stands for all sections in it but the excluded."""
    listed = [given] if isinstance(given, str | Path) else given or []
    for name, value in (("sections", listed), ("exclude", exclude)):
        if not isinstance(value, list | tuple):
            raise TypeError(f'{name} has to be a list, such as ["a", "b"], got {value!r}.')
    files: list[Path] = []
    for entry in listed:
        path = folder / Path(entry).expanduser()
        if path.suffix in SUFFIXES or is_visium(path):
            files.append(path)
        elif path.is_dir():
            files += list_sections(path)
        else:
            raise ValueError(f"section {path} is not {' or '.join(SUFFIXES)}.")
    if unknown := set(exclude) - {section_name(path) for path in files}:
        raise ValueError(f"exclude names {shorten(sorted(unknown))}, which is none of the sections.")
    if not (files := [path for path in files if section_name(path) not in exclude]):
        raise ValueError("no section was given. Set sections to files or to a folder with .h5ad or .zarr.")
    return tuple(str(path) for path in find_sections(files).values())


def _located(model: str, folder: Path) -> str:
    """A path counts from the configuration's folder; a name is left."""
    is_path = "/" in model or model.endswith((".safetensors", ".pt"))
    return str(folder / Path(model).expanduser()) if is_path else model


def _check_values(settings: Any, where: str, known: Mapping[str, Sequence[str]], least: Mapping[str, int]) -> None:
    """Refuse settings that are none of the known values, or numbers that are too small; None is a default."""
    for name, choices in known.items():
        value = getattr(settings, name)
        for entry in value if isinstance(value, tuple) else (value,):
            if entry is not None:
                check_choice(where + name, entry, choices)
    for name, bound in least.items():
        if getattr(settings, name) is not None:
            check_whole(where + name, getattr(settings, name), bound)
