"""Toy notebooks: their files, a nap and a failure of each kind, and myst_nb's glue without its second of imports."""

import json
import os
import signal
import time


def ipynb(path, *sources):
    """A notebook of these code cells, the first of which holds its parameters."""
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    cells = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {"tags": [] if i else ["parameters"]}, "execution_count": None,
         "outputs": [], "source": source}
        for i, source in enumerate(sources)
    ]  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
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
