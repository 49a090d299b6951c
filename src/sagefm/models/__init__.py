"""Models: load by name or path; the networks they are made of."""

from typing import TYPE_CHECKING, Any

from sagefm.models._encoder import Encoder, load_encoder
from sagefm.models._model import Model
from sagefm.models._registry import available, load
from sagefm.models._vocabulary import Vocabulary

if TYPE_CHECKING:
    from sagefm.models._gcn import GCN
    from sagefm.models._sage import SAGE

__all__ = ["GCN", "SAGE", "Encoder", "Model", "Vocabulary", "available", "load", "load_encoder"]


def __getattr__(name: str) -> Any:
    # PyTorch Geometric takes seconds to import, so the networks come when asked for.
    if name == "GCN":
        from sagefm.models._gcn import GCN

        return GCN
    if name == "SAGE":
        from sagefm.models._sage import SAGE

        return SAGE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
