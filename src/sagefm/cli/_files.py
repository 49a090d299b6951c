"""Files that commands write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sagefm._io.files import atomic, check_writable
from sagefm._settings import logger
from sagefm._slides import SUFFIXES, is_visium

if TYPE_CHECKING:
    from anndata import AnnData


def read_slide(path: Path, out: Path | None, *, overwrite: bool, writes: Sequence[str] = SUFFIXES) -> AnnData:
    """Read a slide, after checking that the output can be written."""
    visium = is_visium(path)
    if path.suffix not in SUFFIXES and not visium and (path.suffix or path.exists()):
        raise ValueError(f"{path} is not {' or '.join(SUFFIXES)}, and not the outs folder or the .h5 of Space Ranger.")
    if not path.exists():
        raise FileNotFoundError(f"no slide at {path}.")
    if out is not None and out.suffix not in writes:
        raise ValueError(f"{out} is not {' or '.join(writes)}.")
    if out is not None and out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists already; --overwrite replaces it.")
    if out is not None:
        check_writable(out)
    if (path / "tables").is_dir():
        raise ValueError(f"{path} is a SpatialData object; the command line takes its table, written as an .h5ad.")
    from sagefm.read._section import read_section  # brings pandas

    return read_section(path)


def write_slide(adata: AnnData, path: Path) -> None:
    """Write a slide, over what is at ``path``."""
    with atomic(path) as partial:
        if path.suffix == ".zarr":
            adata.write_zarr(partial)
        else:
            adata.write_h5ad(partial, compression="gzip")
    logger.info("Wrote %s.", path)


class headless:
    """Draw without a screen, and leave the backend as it was."""

    def __enter__(self) -> None:
        import matplotlib.pyplot as plt

        self.backend = plt.get_backend()
        plt.switch_backend("agg")

    def __exit__(self, *exception: object) -> None:
        import matplotlib.pyplot as plt

        plt.switch_backend(self.backend)
