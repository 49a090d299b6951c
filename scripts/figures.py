"""Put the demo's figures together for README and docs.

python scripts/figures.py DEMO_DIR OUT_DIR
"""

import sys
from pathlib import Path

from PIL import Image

WIDTH = 1000
SINGLE = ("perturbed.png", "reliability.png")


def main(demo: Path, out: Path) -> None:
    """Write ``demo.png``, one figure above the other, and those that stand alone; 256 colours."""
    for name, sources in (("demo.png", ("clusters.png", "imputed.png")), *((name, (name,)) for name in SINGLE)):
        parts = [Image.open(demo / source).convert("RGB") for source in sources]
        parts = [part.resize((WIDTH, round(part.height * WIDTH / part.width))) for part in parts]
        whole = Image.new("RGB", (WIDTH, sum(part.height for part in parts)), "white")
        top = 0
        for part in parts:
            whole.paste(part, (0, top))
            top += part.height
        whole.quantize(256).save(out / name, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
