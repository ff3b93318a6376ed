"""Values that several threads request and one of them makes."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Once(dict[K, V]):
    """Values by key, each made by the first thread that requests it; after a failure the next one tries again."""

    def __init__(self, *known: dict[K, V]) -> None:
        super().__init__(*known)
        self._making: dict[K, Lock] = {}

    def __reduce__(self) -> tuple[type[Once[K, V]], tuple[dict[K, V]]]:
        return type(self), (dict(self),)

    def made(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, from `make` where there is none; other keys do not wait."""
        if key not in self:
            with self._making.setdefault(key, Lock()):
                if key not in self:
                    self[key] = make()
        return self[key]
