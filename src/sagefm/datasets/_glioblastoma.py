"""Glioblastoma of the paper's task: Ravi et al. 2022 (Dryad) and Ren et al. 2023 (GEO)."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from zipfile import BadZipFile, ZipFile

from sagefm._io.download import download, get_json, notice
from sagefm.datasets._fetch import (
    GEO,
    MATRIX,
    POSITIONS,
    UNREADABLE,
    describe,
    fetch,
    folder_of,
    on_geo,
    read_visium,
    unreadable,
)

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

DRYAD = "https://datadryad.org"
DOI = "10.5061/dryad.h70rxwdmj"
ARCHIVE = "10XVisium_2.zip"
REN = "Ren 2023"
RAVI_NOTICE = (
    f"The glioblastoma sections UKF* are of Ravi et al. 2022 (Cancer Cell 40:639), Dryad {DOI}: CC0, cite both."
)
REN_NOTICE = (
    "These glioblastoma sections are of Ren et al. 2023 (Nat Commun 14:1028), GEO GSE194329. GEO states no licence of "
    "its own: cite the paper, and see there for what is allowed."
)


def glioblastoma_samples() -> pd.DataFrame:
    """List the glioblastoma sections that :func:`glioblastoma` knows by name.

    Returns
    -------
    One row per section, indexed by ``sample``: ``donor``, ``source`` (``"Ravi 2022"`` or ``"Ren 2023"``) and
    ``accession``. Ravi's names say the place: C cortex, T tumor, TC its core, TI infiltration. Those with ``C`` and
    ``IDHMutant`` are cortex and another kind of tumor.

    Notes
    -----
    The paper (arXiv 2601.15504, Data availability) takes 19 sections from these two sources and from the compilation of
    Zheng et al. 2023 (Nat Commun 14:4122), whose deconvolution gives its labels of five states. It doesn't say which
    sections, and the labels aren't public. GSE194329 also has diffuse midline gliomas; give what their files' names
    begin with.

    Examples
    --------
    >>> import sagefm as sg
    >>> samples = sg.datasets.glioblastoma_samples()
    >>> samples.groupby("source").size().to_dict()
    {'Ravi 2022': 28, 'Ren 2023': 6}
    >>> samples.loc["UKF242_T_ST", "donor"]
    'UKF242'
    """
    import pandas as pd

    with (files("sagefm.datasets") / "glioblastoma.csv").open() as file:
        return pd.read_csv(file, index_col="sample")


def glioblastoma(
    sample: str,
    archive: str | Path | None = None,
    *,
    token: str | None = None,
    folder: str | Path | None = None,
    sha256: Mapping[str, str] | None = None,
    base_url: str | None = None,
) -> AnnData:
    """Fetch one glioblastoma section of Ravi et al. 2022 or Ren et al. 2023, and read it.

    Parameters
    ----------
    sample
        One of :func:`glioblastoma_samples`; names that begin with UKF are Ravi's.
    archive
        Ravi's ``10XVisium_2.zip``, if you have it; else it is fetched whole, about 8 GB, at the first of its sections.
    token
        Dryad's API token, which its downloads need; ``$DRYAD_TOKEN`` by default. It is never logged or stored.
    folder
        Where files go; by default ``glioblastoma`` in ``sg.settings.cache_dir``. What lies there isn't fetched again.
    sha256
        Digests of files by name, as an earlier call logged them, to hold them to. Dryad states its own.
    base_url
        Where Dryad (``"https://datadryad.org"``) or GEO's samples are fetched from: a mirror, say.

    Returns
    -------
    The section: raw counts, ``obsm["spatial"]`` in pixels, ``obs["array_row"]``, ``obs["array_col"]``,
    ``obs["sample"]``, ``obs["donor"]`` and ``obs["tissue"]``.

    Raises
    ------
    ValueError
        If the sample is unknown, or a file isn't what it should be.
    FileNotFoundError
        If there is no archive at the path.
    RuntimeError
        If it can't be downloaded; without a token, the message says where to get one.

    Notes
    -----
    Names and layout of the files are as code that reads them has them (``10XVisium 2/#UKF242_T_ST/outs``; GEO's files
    as ``GSM5833536_GBM4_spaceranger_out.tar.gz``), addresses are Dryad's API and GEO's general rule. None of it is
    checked against the real files. GEO's accessions are known for GBM1 and GBM4; the others follow their order.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.glioblastoma("GBM4")  # doctest: +SKIP
    >>> adata = sg.datasets.glioblastoma("UKF242_T_ST", "10XVisium_2.zip")  # doctest: +SKIP
    >>> sg.datasets.glioblastoma("UKF242_T_ST", "nowhere.zip")
    Traceback (most recent call last):
    ...
    FileNotFoundError: no archive at nowhere.zip; leave archive out to fetch it.
    """
    at = folder_of("glioblastoma", folder)
    samples = glioblastoma_samples()
    if sample.startswith("UKF"):
        if sample not in samples.index:
            raise ValueError(f"unknown sample {sample!r}: sg.datasets.glioblastoma_samples() lists those there are.")
        notice(RAVI_NOTICE)
        name, adata = sample, _from_archive(sample, _archive(archive, at, sha256, token, base_url or DRYAD))
    else:
        notice(REN_NOTICE)
        accessions = samples["accession"][samples["source"] == REN].to_dict()
        url, begin, name = on_geo(sample, accessions, base_url or GEO)
        adata = _from_outs(fetch(url, at, f"{begin}_spaceranger_out.tar.gz", sha256))
    # A section that isn't known counts as a patient of its own.
    return describe(adata, sample=name, donor=str(samples["donor"].get(name, name)), tissue="brain")


def _archive(
    archive: str | Path | None, folder: Path, sha256: Mapping[str, str] | None, token: str | None, base_url: str
) -> Path:
    """Return Ravi's archive: the given one, the one fetched before, or a new one."""
    if archive is not None:
        path = Path(archive).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"no archive at {path}; leave archive out to fetch it.")
        return path
    path, digest = folder / ARCHIVE, (sha256 or {}).get(ARCHIVE)
    if path.exists() and digest is None:
        return path  # no need to ask Dryad where it is
    url, stated = _on_dryad(base_url, path)
    return download(
        url,
        path,
        sha256=digest or stated,
        token=token or os.environ.get("DRYAD_TOKEN"),
        refused=f"Dryad wants a token: make one at {DRYAD}/account, then pass token=... or set DRYAD_TOKEN",
        instead=", or pass its path as archive=...",
    )


def _on_dryad(base_url: str, path: Path) -> tuple[str, str | None]:
    """Ask Dryad for the address of the archive in the data set's newest version, and its sha256 if it is stated."""
    by_hand = (
        f"Fetch {ARCHIVE} from https://doi.org/{DOI} by hand and put it at {path}, or pass its path as archive=..."
    )
    dataset = get_json(f"{base_url}/api/v2/datasets/doi%3A{DOI.replace('/', '%2F')}", instead=by_hand)
    try:
        version = dataset["_links"]["stash:version"]["href"]
        listed = get_json(f"{base_url}{version}/files?per_page=100", instead=by_hand)["_embedded"]["stash:files"]
        file = {file["path"]: file for file in listed}[ARCHIVE]
        url = f"{base_url}{file['_links']['stash:download']['href']}"
    except (KeyError, TypeError) as error:
        raise RuntimeError(f"Dryad's answer about {DOI} lacks {error}. {by_hand}") from error
    return url, file.get("digest") if file.get("digestType") == "sha-256" else None


def _from_archive(sample: str, archive: Path) -> AnnData:
    """Read one section out of Ravi's archive: counts as h5, or as mtx where there is no h5."""
    try:
        with ZipFile(archive) as zipped, TemporaryDirectory() as scratch:
            names = [name for name in zipped.namelist() if f"#{sample}/outs/" in name and "__MACOSX" not in name]
            matrix = [name for name in names if name.endswith(f"outs/{MATRIX}")]
            mtx = [name for name in names if f"outs/{Path(MATRIX).stem}/" in name and not name.endswith("/")]
            positions = [name for name in names if name.endswith(f"outs/spatial/{POSITIONS}")]
            if len(positions) != 1 or not (matrix or mtx):
                raise unreadable(archive, ARCHIVE, f"no counts and positions in #{sample}/outs, only {names[:5]}")
            extracted = [Path(zipped.extract(name, scratch)) for name in (*(matrix or mtx), *positions)]
            return read_visium(extracted[0] if matrix else extracted[0].parent, extracted[-1])
    except BadZipFile as error:
        raise unreadable(archive, ARCHIVE, error) from error


def _from_outs(archive: Path) -> AnnData:
    """Read Space Ranger's folder out of an archive that holds nothing else."""
    from sagefm.read import visium

    try:
        with tarfile.open(archive) as packed, TemporaryDirectory() as scratch:
            packed.extractall(scratch, filter="data")  # refuses paths that lead outside
            spatial = [path for path in Path(scratch).rglob("spatial") if path.is_dir()]
            if len(spatial) != 1:
                raise ValueError(f"it holds {len(spatial)} folders named spatial")
            return visium(spatial[0].parent)
    except (*UNREADABLE, tarfile.TarError) as error:
        raise unreadable(archive, "an archive of Space Ranger's folder", error) from error
