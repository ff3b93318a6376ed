"""llama.cpp on the same GGUF files, in an environment of its own that `make peer-llama` builds."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from flashspec.models.folder import GGUF

DRIVER = Path(__file__).with_name("llama_driver.py")
PYTHON = "FLASHSPEC_LLAMA"  # names a Python that has llama-cpp-python
HERE = Path(".venv-llama/bin/python")
MISSING = f"llama.cpp is not here: `make peer-llama` builds it, or {PYTHON} names a Python that has llama-cpp-python"


class Llama:
    """A target and perhaps a draft run by llama.cpp, greedy, on as many threads as torch has here.

    Its process sleeps between calls. Raises FileNotFoundError where llama.cpp is missing, and ValueError for models that are
    not GGUF files, or where its process ends.
    """

    def __init__(self, target: Path, draft: Path | None, context: int) -> None:
        python = os.environ.get(PYTHON) or HERE
        if not Path(python).exists():
            raise FileNotFoundError(MISSING)
        for path in filter(None, (target, draft)):
            if path.suffix != GGUF:
                raise ValueError(f"llama.cpp reads GGUF files, got {path.name}; write one with `flashspec export`")
        asked = {"target": str(target), "draft": draft and str(draft), "threads": torch.get_num_threads(), "context": context}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([str(python), str(DRIVER), json.dumps(asked)], stderr=subprocess.DEVNULL, **pipes)
        self._answer()

    def greedy(self, prompt: Iterable[int], new_tokens: int, k: int | None = None, lookup: bool = False) -> dict[str, Any]:
        """`new_tokens` tokens after a prompt and the counts rounds, drafted and accepted; plain without `k`.

        `prefill_seconds` is the time of reading the prompt. ValueError where the text outgrows the context.
        """
        how = "plain" if not k else "lookup" if lookup else "draft"
        call = {"ids": list(prompt), "tokens": new_tokens, "how": how, "k": k or 0}
        stdin: Any = self._process.stdin
        stdin.write(json.dumps(call) + "\n")
        stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line.strip():
            raise ValueError("llama.cpp ended without an answer; give a file that it reads, or build it again: make peer-llama")
        if "error" in (found := dict(json.loads(line))):
            raise ValueError(found["error"])
        return found
