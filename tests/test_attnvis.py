import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT, TINY, run_script

import prepare

POEM = (ROOT / "data/attnvis/rumengling.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def executed_notebook(tmp_path_factory):
    """attnvis.ipynb after one run from top to bottom, in a folder with a data set and a tiny run of its own."""
    folder = tmp_path_factory.mktemp("attnvis")
    data = folder / "data" / "quansongci"
    data.mkdir(parents=True)
    (data / "input.txt").write_text(POEM * 20, encoding="utf-8")
    prepare.prepare(data)
    shutil.copytree(ROOT / "data" / "attnvis", folder / "data" / "attnvis")
    done = run_script(
        "train.py", *TINY, "--max_seq_len", 64, "--n_layer", 3, "--iters", 2, "--eval_iters", 1, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    shutil.copy(ROOT / "attnvis.ipynb", folder)
    subprocess.run(
        [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", "attnvis.ipynb"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    return nbformat.read(folder / "attnvis.ipynb", as_version=4)


def outputs(notebook) -> list[dict]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_part_one_prints_what_it_loads_and_the_poem(executed_notebook):
    [printed] = [output.text for output in outputs(executed_notebook) if output.output_type == "stream"]
    meta = os.path.join("data", "quansongci", "meta.pkl")
    assert printed.strip() == f"Loading meta from {meta}...\nInput texts: {POEM}".strip()


def test_part_two_shows_every_token_layer_and_head(executed_notebook):
    scripts = [
        output.data["application/javascript"]
        for output in outputs(executed_notebook)
        if "data" in output and "application/javascript" in output.data
    ]
    [parameters] = [match[1] for script in scripts for match in re.finditer(r"const params = (\{.*?\}); //", script)]
    [view] = json.loads(parameters)["attention"]
    tokens = list(POEM.replace("\n", "↵"))
    assert view["left_text"] == view["right_text"] == tokens
    assert len(view["attn"]) == 3 and all(len(layer) == 2 for layer in view["attn"])
    for layer in view["attn"]:
        for head in layer:
            for i, row in enumerate(head):
                assert len(row) == len(tokens) and abs(sum(row) - 1) < 1e-4 and not any(row[i + 1 :])
    assert json.loads(parameters)["layer"] == 0


def test_the_committed_notebook_has_its_paths_in_one_cell():
    cells = [
        cell.source for cell in nbformat.read(ROOT / "attnvis.ipynb", as_version=4).cells if cell.cell_type == "code"
    ]
    assert [name in cells[0] for name in ("data/quansongci", "workdirs/quansongci", "rumengling.txt")] == [True] * 3
