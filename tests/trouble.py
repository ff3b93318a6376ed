"""A nap and a failure of each kind, and myst_nb's glue without its second of imports: what a toy notebook needs."""

import os
import signal
import time


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
