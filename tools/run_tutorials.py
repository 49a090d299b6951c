"""Run the tutorials and store their outputs, without progress bars, warnings of other libraries and large images.

python tools/run_tutorials.py [NOTEBOOK ...]

Needs the ``doc`` extra.
"""

import base64
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image


def keep(output: nbformat.NotebookNode) -> bool:
    """Whether an output is worth keeping."""
    if output.output_type == "stream" and output.name == "stderr":
        return all(line.startswith("sagefm: ") for line in output.text.splitlines() if line.strip()) and bool(
            output.text.strip()
        )
    return "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def shrink(png: str) -> str:
    """Reduce an image to 256 colors: a third of the size, and no difference to see in our figures."""
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode() + "\n"


def main() -> None:
    """Run each notebook in place."""
    paths = [Path(name) for name in sys.argv[1:]] or sorted(Path("tutorials").glob("*.ipynb"))
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if keep(output)]
                for output in cell.outputs:
                    if "image/png" in output.get("data", {}):
                        output.data["image/png"] = shrink(output.data["image/png"])
        notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(notebook, path)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
