"""What several threads ask for is made by one of them."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest
from toys import random_model

from flashspec import FlashHead, Models
from flashspec.once import Once

THREADS = 4


def together(ask):
    start = Barrier(THREADS)

    def asked():
        start.wait()
        return ask()

    with ThreadPoolExecutor(THREADS) as pool:
        return [pool.submit(asked) for _ in range(THREADS)]


@pytest.mark.parametrize("name", ["flash", "flash_int8", "int8"])
def test_four_threads_get_one_head(name, monkeypatch):
    models, built, build = Models(random_model(0)), [], FlashHead.build.__func__
    noting = classmethod(lambda *given, **named: built.append(build(*given, **named)) or built[-1])
    monkeypatch.setattr(FlashHead, "build", noting)
    found = [future.result() for future in together(lambda: models.head("target", name))]
    assert all(head is found[0] for head in found) and len(built) == (name != "int8")
    together(lambda: FlashHead.build(models.target.head_weight, models.target.norm))  # the control: each makes its own
    assert len(built) == THREADS + (name != "int8")


def test_what_fails_is_tried_again_by_the_next_thread_and_other_keys_do_not_wait():
    known, tries, waits, done = Once(), [], Event(), Event()

    def make():
        tries.append(object())
        if len(tries) == 1:
            raise MemoryError("no room")
        waits.set()
        assert done.wait(60)
        return tries[-1]

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(together, lambda: known.made("slow", make))
        assert waits.wait(60) and known.made("other", lambda: 1) == 1
        done.set()
    failed = [future for future in slow.result() if future.exception()]
    assert len(failed) == 1 and isinstance(failed[0].exception(), MemoryError) and len(tries) == 2
    assert all(future.result() is tries[1] for future in slow.result() if future not in failed)
