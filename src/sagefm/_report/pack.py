"""Numbers of spots as text that a browser unpacks."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from sagefm._types import Array

LEVELS, MISSING = 254, 255


def pack_floats(values: Array) -> str:
    """float32, as base64."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()


def pack_bytes(values: Array) -> str:
    """Whole numbers from 0 to 255, as base64."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=np.uint8).tobytes()).decode()


def pack(values: Array, low: float, high: float) -> dict[str, Any]:
    """Values as bytes, in 254 steps of a range; 255 is missing."""
    values, span = np.asarray(values, dtype=float), (high - low) or 1.0
    steps = np.clip(np.rint((values - low) / span * LEVELS), 0, LEVELS)
    return {"low": low, "high": low + span, "values": pack_bytes(np.where(np.isfinite(values), steps, MISSING))}
