"""Models: load by name or path; the networks they are made of."""

from typing import TYPE_CHECKING

from sagefm import _lazy
from sagefm.models._model import Model
from sagefm.models._registry import available
from sagefm.models._vocabulary import Vocabulary

if TYPE_CHECKING:
    from sagefm.histology.encoder import Encoder, load_encoder
    from sagefm.models._gcn import GCN
    from sagefm.models._load import install, load
    from sagefm.models._sage import SAGE

__all__ = ["GCN", "SAGE", "Encoder", "Model", "Vocabulary", "available", "install", "load", "load_encoder"]

# PyTorch and PyTorch Geometric take seconds to import, so what needs them comes when it is asked for.
__getattr__ = _lazy.attach(
    __name__,
    {
        "GCN": "sagefm.models._gcn",
        "SAGE": "sagefm.models._sage",
        "Encoder": "sagefm.histology.encoder",
        "install": "sagefm.models._load",
        "load": "sagefm.models._load",
        "load_encoder": "sagefm.histology.encoder",
    },
)
