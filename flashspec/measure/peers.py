"""Peers: transformers' generate and assisted generation (the extra `peers`), and llama.cpp on the same GGUF files.

llama.cpp runs in an environment of its own that `make peer-llama` builds.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from flashspec.models.folder import GGUF

CONSTANT = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}  # exactly k tokens a round
DRIVER = Path(__file__).with_name("llama.py")
PYTHON = "FLASHSPEC_LLAMA"  # names a Python that has llama-cpp-python
HERE = Path(".venv-llama/bin/python")
MISSING = f"llama.cpp is not here: `make peer-llama` builds it, or {PYTHON} names a Python that has llama-cpp-python"


def _transformers() -> Any:
    """The transformers package, or an error that says how to install it."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError("transformers is not installed; install the extra peers: pip install 'flashspec[peers]'") from error


class Peers:
    """Dense checkpoint folders as target and draft, run by transformers; ImportError names the extra where it is missing."""

    def __init__(self, target: Path, draft: Path, dtype: torch.dtype) -> None:
        auto = _transformers().AutoModelForCausalLM
        with _quiet():
            self.target, self.draft = (auto.from_pretrained(str(folder), dtype=dtype).eval() for folder in (target, draft))
        for model in (self.target, self.draft):
            model.generation_config.eos_token_id = None  # timed runs emit a fixed number of tokens

    def greedy(self, prompt: Iterable[int], new_tokens: int, k: int | None = None) -> dict[str, Any]:
        """Exactly `new_tokens` greedy `tokens`; with `k`, assisted by the draft on a constant schedule."""
        ids = torch.tensor([list(prompt)])
        settings: dict[str, Any] = {"max_new_tokens": new_tokens, "do_sample": False}
        if k is not None:
            self.draft.generation_config.update(**CONSTANT, num_assistant_tokens=k)
            settings["assistant_model"] = self.draft
        with torch.inference_mode(), _quiet():
            out = self.target.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        return {"tokens": out[0, ids.shape[1] :].tolist()}

    @torch.inference_mode()
    def score(self, prefix: Sequence[int], block: int) -> torch.Tensor:
        """transformers' own logits after a prefix read in blocks, for certificates of its texts."""
        cache: Any = None
        for part in torch.tensor([list(prefix)]).split(block, dim=1):
            out = self.target(part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
        return out.logits[0, -1].float()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' advice and progress bars inside timed code."""
    logging = _transformers().utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


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
        with contextlib.suppress(BrokenPipeError):  # no answer says it
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
