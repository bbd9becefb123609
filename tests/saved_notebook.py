"""The outputs that attnvis.ipynb is saved with.

`PYTHONPATH=. python tests/saved_notebook.py` runs attnvis.ipynb with the trained models of workdirs/, and saves it with
its outputs, without the interactive views.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "attnvis.ipynb"


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook) -> str:
    """A hash of the sources of all cells, which tells the cells that the saved outputs belong to."""
    return hashlib.sha256(json.dumps([cell.source for cell in notebook.cells]).encode()).hexdigest()


def execute(path: Path, cwd: Path) -> None:
    """Runs all cells of a notebook in a kernel of its own, and saves it with its outputs."""
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", str(path)]
    subprocess.run(command, cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)


def without_interactive_views(notebook):
    """A copy to be saved: the views are a megabyte each, hold d3 and jQuery, and a code host does not show them."""
    notebook = nbformat.from_dict(json.loads(json.dumps(notebook)))
    CoalesceStreamsPreprocessor(enabled=True).preprocess(notebook, {})  # a pause between two prints makes two outputs
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("text/html", None)
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    notebook.metadata["sources"] = digest(notebook)
    return notebook


if __name__ == "__main__":
    execute(NOTEBOOK, ROOT)
    nbformat.write(without_interactive_views(nbformat.read(NOTEBOOK, as_version=4)), NOTEBOOK)
