"""llama.cpp as a peer: run by the Python that has llama-cpp-python; it answers each JSON line with one.

The loop is that of llama.cpp's own example of speculation. Nothing of flashspec is imported.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import chain
from typing import Any

import numpy as np

BATCH = 512  # tokens that are read at once
LONGEST, SHORTEST = 3, 2  # tokens that prompt lookup compares, as ours


class Model:
    """One GGUF file with a context: the tokens in its cache, and the logits of the newest batch."""

    def __init__(self, api: Any, path: str, threads: int, context: int) -> None:
        self.api, self.held = api, list[int]()
        self.model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
        if not self.model:
            raise ValueError(f"llama.cpp cannot load {path}")
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_batch = max(context, BATCH), BATCH  # it ends where a batch is longer than a context
        settings.n_threads = settings.n_threads_batch = threads
        self.context = api.llama_init_from_model(self.model, settings)
        self.words = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(BATCH, 0, 1)

    def forget(self, length: int) -> None:
        """Keep the first `length` tokens."""
        self.api.llama_memory_seq_rm(self.api.llama_get_memory(self.context), 0, length, -1)
        del self.held[length:]

    def read(self, tokens: list[int], scored: int) -> list[int]:
        """Read tokens after those in the cache; returns the best ids after each of the last `scored` of them."""
        for start in range(0, len(tokens), BATCH):
            part, batch = tokens[start : start + BATCH], self.batch
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, len(self.held) + i, 1
                batch.seq_id[i][0], batch.logits[i] = 0, start + i >= len(tokens) - scored
            if self.api.llama_decode(self.context, batch):
                raise ValueError(f"llama.cpp cannot read {len(part)} tokens behind {len(self.held)}; give a shorter prompt")
            self.held += part
        return [self.best(i) for i in range(len(part) - scored, len(part))]

    def best(self, row: int) -> int:
        """The best id of a row of the newest batch."""
        return int(np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, row), (self.words,)).argmax())


def looked_up(text: list[int], k: int) -> list[int]:
    """Up to k tokens that followed the latest longest earlier occurrence of the last ones."""
    for span in range(LONGEST, SHORTEST - 1, -1):
        for at in range(len(text) - span - 1, -1, -1):
            if text[at : at + span] == text[-span:]:
                return text[at + span : at + span + k]
    return []


def drafted(draft: Model, text: list[int], k: int) -> list[int]:
    """k greedy tokens of the draft, whose cache keeps what is still valid.

    The newest token is read alone, as in llama.cpp's example: two rows together take it longer than two reads of one.
    """
    same = 0
    while same < min(len(draft.held), len(text) - 1) and draft.held[same] == text[same]:
        same += 1
    draft.forget(same)
    if same < len(text) - 1:
        draft.read(text[same:-1], 1)
    found = draft.read(text[-1:], 1)
    while len(found) < k:
        found += draft.read(found[-1:], 1)
    return found


def decode(target: Model, draft: Model | None, call: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens after the ids of a call, plain or speculative, with counts and times."""
    ids, wanted, how, k = call["ids"], call["tokens"], call["how"], call["k"]
    target.forget(0)
    if draft:
        draft.forget(0)
    start, rounds, accepted, proposed = time.perf_counter(), 0, 0, 0
    text = [*ids, *target.read(ids, 1)]
    prefill = time.perf_counter() - start
    while len(text) < len(ids) + wanted:
        room = min(k, len(ids) + wanted - len(text) - 1)
        ahead = list[int]()
        if how != "plain" and room > 0:
            ahead = drafted(draft, text, room) if draft and how == "draft" else looked_up(text, room)
        best = target.read([text[-1], *ahead], 1 + len(ahead))
        kept = 0
        while kept < len(ahead) and ahead[kept] == best[kept]:
            kept += 1
        text += [*ahead[:kept], best[kept]]
        target.forget(len(text) - 1)
        rounds, accepted, proposed = rounds + 1, accepted + kept, proposed + len(ahead)
    counts = {"rounds": rounds, "accepted": accepted, "drafted": proposed, "prefill_seconds": prefill}
    return {"tokens": text[len(ids) :], **counts}


def main() -> None:
    """Load the models named in the argument, then answer calls; errors are answers too."""
    import llama_cpp as api

    quiet = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(quiet, None)
    api.llama_backend_init()
    models = list[Any]()

    def answer(call: dict[str, Any]) -> dict[str, Any]:
        if models:
            return decode(models[0], models[1], call)
        models[:] = [path and Model(api, path, call["threads"], call["context"]) for path in (call["target"], call["draft"])]
        return {}

    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # what llama.cpp prints is no answer
        for line in chain([sys.argv[1]], sys.stdin):
            try:
                said = answer(json.loads(line))
            except ValueError as error:
                said = {"error": str(error)}
            print(json.dumps(said), file=out, flush=True)


if __name__ == "__main__":
    main()
