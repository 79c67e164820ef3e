"""The short version of `scripts/soak`."""

from pathlib import Path

import pytest

from .soak import soak


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of a process from /proc")
def test_memory_stays_flat_and_the_counters_add_up_under_a_mixed_load(tmp_path: Path) -> None:
    result = soak(tmp_path, seconds=20)

    assert min(result.sent[kind] for kind in ("/placed", "/broken", "/placed-in-a-thread", "/websocket")) > 20
    assert result.counted() == result.expected()
    assert result.counts["succeeded"] == result.stats["delivered"]
    assert result.counts["dead letters"] == result.stats["dead_lettered"]
    assert result.counts["failed once"] == result.stats["retried"]
    assert result.blocks[-1] < result.blocks[0] * 1.03
    assert result.growth() < 0.05
