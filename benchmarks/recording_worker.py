"""A worker that keeps the last inputs it gave to ONNX Runtime, for measuring that alone on the same inputs.

    python -m benchmarks.recording_worker FEEDS.npz KEPT WORKER_ID

Only the run that records uses it; the timed worker is the plain one.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections import deque
from typing import Any

import numpy as np
import onnxruntime as ort

from streams.settings import load_settings
from streams.worker import Worker

__all__: list[str] = []


def main(path: str, kept: int, worker_id: str) -> None:
    """Serve until SIGTERM, then write the last `kept` calls to `path` as `<number>.<input>` arrays."""
    logging.basicConfig(level=logging.INFO)
    calls: deque[dict[str, Any]] = deque(maxlen=kept)
    plain = ort.InferenceSession.run

    def run(self: Any, outputs: Any, feeds: dict[str, Any], *more: Any) -> Any:
        calls.append({name: np.array(values) for name, values in feeds.items()})
        return plain(self, outputs, feeds, *more)

    ort.InferenceSession.run = run
    worker = Worker(load_settings(), worker_id)
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    worker.run()
    arrays = {f"{n}.{name}": values for n, call in enumerate(calls) for name, values in call.items()}
    np.savez(path, **arrays)
    logging.shutdown()
    os._exit(0)  # as the plain worker ends: the clients' threads are not waited for


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
