"""scripts/bench ring: what taking a request from a virtqueue and answering it costs."""

from __future__ import annotations

from scripts.tools.bench.figures import Figure, interleaved

REQUESTS = 1 << 21
GOAL_NS = 12.0


def figures(rounds: int) -> list[Figure]:
    """Measure pop and push of chains of three descriptors, with and without a log in flight."""
    from kvmpv.dataplane import ring

    plain, logged = interleaved(
        rounds, lambda: ring.cost(REQUESTS), lambda: ring.cost(REQUESTS, with_log=True)
    )
    return [
        Figure("ring, pop and push", "ns", plain, 0, "", GOAL_NS),
        Figure("ring, with its log of requests in flight", "ns", logged, 0, "", 0),
    ]
