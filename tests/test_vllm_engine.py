"""The end of vLLM's engine. The rest of `members/vllm.py` wants vLLM: `benchmarks/bench_vllm.py` runs it."""

from __future__ import annotations

import asyncio
import weakref

from unite_ext.members.vllm import VllmEngine


class Engine:
    """What `close` uses of vLLM's engine."""

    ends = 0

    def shutdown(self) -> None:
        Engine.ends += 1


def test_a_closed_engine_is_let_go_of_and_can_be_closed_again():
    """Its destructor shuts it down once more: at the end of a process its modules have gone by then."""
    backend = VllmEngine.__new__(VllmEngine)
    backend._engine, backend._loop = Engine(), asyncio.new_event_loop()
    alive = weakref.ref(backend._engine)
    backend.close()
    assert alive() is None
    backend.close()
    assert Engine.ends == 1
    backend._loop.close()
