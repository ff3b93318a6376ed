"""transformers' own generate and assisted generation, as contestants for the bench. Needs the extra `peers`."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from flashspec.measure.bench import Contestant
from flashspec.measure.certificate import Scorer


def _transformers() -> ModuleType:
    """The transformers package, or an error that says how to get it."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError("transformers is not installed; install the extra peers: pip install 'flashspec[peers]'") from error


def installed() -> bool:
    """Whether transformers can be compared with."""
    try:
        return bool(_transformers())
    except ImportError:
        return False


@dataclass(frozen=True)
class Peers:
    """A target and a draft in transformers' hands, loaded from the same folders and in the same dtype as ours."""

    target: Any
    draft: Any = None

    @classmethod
    def load(cls, target: Path | str, draft: Path | str | None = None, dtype: torch.dtype = torch.bfloat16) -> Peers:
        """Load dense checkpoint folders. Raises ImportError naming the extra where transformers is missing."""
        auto = _transformers().AutoModelForCausalLM
        with _quiet():
            models = [auto.from_pretrained(str(f), dtype=dtype).eval() if f else None for f in (target, draft)]
        for model in filter(None, models):
            model.generation_config.eos_token_id = None  # timed runs emit a fixed number of tokens
        return cls(*models)

    def greedy(self, prompt: Iterable[int], new_tokens: int, k: int | None = None) -> list[int]:
        """Exactly `new_tokens` greedy tokens; `k` assists with the draft at a constant schedule and threshold 0."""
        ids = torch.tensor([list(prompt)])
        settings: dict[str, Any] = {"max_new_tokens": new_tokens, "do_sample": False}
        with torch.inference_mode(), _quiet(), self._assistant(k) as assistant:
            out = self.target.generate(ids, attention_mask=torch.ones_like(ids), assistant_model=assistant, **settings)
        return [int(token) for token in out[0, ids.shape[1] :]]

    def contestant(self, prompt: Iterable[int], new_tokens: int, k: int | None = None) -> Contestant:
        """The same as a callable for the bench."""
        ids = tuple(prompt)
        return lambda: self.greedy(ids, new_tokens, k)

    def scorer(self) -> Scorer:
        """transformers' own logits after a prefix read in blocks, for a divergence certificate of its texts."""

        @torch.inference_mode()
        def score(prefix: Sequence[int], block: int) -> torch.Tensor:
            cache: Any = None
            out: Any = None
            for part in torch.tensor([list(prefix)]).split(block, dim=1):
                out = self.target(part, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
            return out.logits[0, -1].float()

        return score

    @contextlib.contextmanager
    def _assistant(self, k: int | None) -> Iterator[Any]:
        """The draft set to propose exactly k tokens a round; its settings are given back afterwards."""
        if k is None:
            yield None
            return
        if self.draft is None:
            raise ValueError("assisted generation needs a draft; load the pair with a draft folder")
        wanted = {"num_assistant_tokens": k, "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
        config = self.draft.generation_config
        before = {name: getattr(config, name, None) for name in wanted}
        config.update(**wanted)
        try:
            yield self.draft
        finally:
            config.update(**before)


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
