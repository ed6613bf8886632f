"""The soak, in short: every kind of request against a server of this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak import KINDS, count_files, soak
from nextscale.upscale.nextscale import NextScale
from nextscale.web.limits import Limits
from tests.server import local, wait_until

pytestmark = pytest.mark.integration


def test_mixed_and_hostile_requests_do_no_harm(model: NextScale, tmp_path: Path) -> None:
    limits = Limits(stall_seconds=1, gone_seconds=1, keep_seconds=5)
    with local(model, tmp_path / "f", limits) as server:
        outcome = soak(server.url, 60, seed=3)
        assert outcome.wrong == []
        assert {words.split()[0] for words in outcome.counts} <= set(KINDS)
        assert outcome.counts["upscale 200"] > 5
        assert sum(outcome.counts.values()) == 60
        wait_until(lambda: count_files(server.folder) == 0)
        assert not server.server.jobs.jobs
        assert not server.server.streams


def test_a_wrong_answer_is_seen(model: NextScale, tmp_path: Path) -> None:
    with local(model, tmp_path / "f") as server:
        original = server.server.jobs._save
        calls = 0

        def swapped(job: object, key: str, reveal: object) -> None:
            nonlocal calls
            calls += 1
            original(job, key, reveal)  # type: ignore[arg-type]
            if calls > 8:  # after those that are asked for alone
                (job.folder / f"{key}.png").write_bytes(b"another's")  # type: ignore[attr-defined]

        server.server.jobs._save = swapped  # type: ignore[method-assign]
        outcome = soak(server.url, 5, seed=3)
    assert any("not this client's picture" in line for line in outcome.wrong)
