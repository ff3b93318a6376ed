"""Toy notebooks: their files, a nap and a failure of each kind, and myst_nb's glue without its second of imports."""

import os
import signal
import time

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def ipynb(path, *sources):
    """A notebook of these code cells, the first of which holds its parameters."""
    cells = [new_code_cell("".join(source), id=f"c{i}") for i, source in enumerate(sources)]
    cells[0].metadata.tags = ["parameters"]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), path)
    return path


def troubled(nap, fail):
    time.sleep(nap)
    if fail == "error":
        raise ValueError("the cache is cold")
    if fail == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    while fail == "hang":
        time.sleep(1)


def glued(name, value):
    from IPython.display import display

    prefix = "application/papermill.record/"
    display({f"{prefix}text/plain": repr(value)}, raw=True, metadata={"scrapbook": {"name": name, "mime_prefix": prefix}})
