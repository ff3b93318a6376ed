"""transformers' own generate and assisted generation, as peers. Needs the extra `peers`."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

CONSTANT = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}  # exactly k tokens a round


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
