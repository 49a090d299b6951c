"""Models: load by name or path; the networks they are made of."""

from typing import TYPE_CHECKING

from sagefm import _lazy
from sagefm.models._model import Model
from sagefm.models._registry import available, load
from sagefm.models._vocabulary import Vocabulary

if TYPE_CHECKING:
    from sagefm.histology.encoder import Encoder, load_encoder
    from sagefm.models._gcn import GCN
    from sagefm.models._sage import SAGE

__all__ = ["GCN", "SAGE", "Encoder", "Model", "Vocabulary", "available", "load", "load_encoder"]

# PyTorch Geometric takes seconds to import, so the networks come when they are asked for.
__getattr__ = _lazy.attach(
    __name__,
    {
        "GCN": "sagefm.models._gcn",
        "SAGE": "sagefm.models._sage",
        "Encoder": "sagefm.histology.encoder",
        "load_encoder": "sagefm.histology.encoder",
    },
)
