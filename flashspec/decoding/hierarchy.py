"""Hierarchies by the names and letters of their papers; each is a Method like any other."""

from __future__ import annotations

from typing import Any

from flashspec.decoding.method import Method
from flashspec.typed import typed


@typed
def self_speculation(draft_exit: int = 2, k: int = 4, **changes: Any) -> Method:
    """One exit drafts k tokens, the whole model verifies them (LayerSkip, Elhoushi et al. 2024, section 4.3)."""
    return Method(exits=(draft_exit,), k=k, **changes)


@typed
def hispec(draft_exit: int = 2, verify_exit: int = 4, n_d: int = 2, n_i: int = 4, **changes: Any) -> Method:
    """HiSpec (Kumar et al. 2025, section 3): the layers below `draft_exit` draft n_d tokens, those below `verify_exit` verify
    them, and the whole model acts once n_i tokens wait for it.

    `changes` are fields of Method: `head="flash"` drafts with a FlashHead, `draft_doubt` and `verify_doubt` adapt n_d and n_i,
    `middle="typical"` is the lossy variant. Raises ValueError for exits out of order and numbers below 1.
    """
    if not 1 <= draft_exit < verify_exit:
        raise ValueError(f"draft_exit must be at least 1 and lie below verify_exit, got {draft_exit} and {verify_exit}")
    if n_d < 1 or n_i < 1:
        raise ValueError(f"n_d and n_i must be at least 1, got n_d={n_d}, n_i={n_i}")
    return Method(exits=(draft_exit, verify_exit), k=n_d, interval=n_i, **changes)


@typed
def cascade(n_d: int = 4, n_i: int = 8, **changes: Any) -> Method:
    """Separate models in a row, as `load(draft=("small", "middle"))` brings them: the smallest drafts n_d tokens, every model
    above the second acts once n_i tokens wait for it. Raises ValueError for numbers below 1.
    """
    if n_d < 1 or n_i < 1:
        raise ValueError(f"n_d and n_i must be at least 1, got n_d={n_d}, n_i={n_i}")
    return Method(draft="cascade", k=n_d, interval=n_i, **changes)
