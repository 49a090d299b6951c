"""Files that commands write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sagefm._files import atomic
from sagefm._settings import logger

if TYPE_CHECKING:
    from anndata import AnnData


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
