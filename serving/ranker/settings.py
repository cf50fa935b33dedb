"""Settings of the ranker at serving time. Imports neither torch nor onnxruntime."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]


class RankerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How workers run the exported ranker.

    `provider`: `auto` takes CUDA when the machine has it, else the CPU; what is in force is read back from
    the session.
    `threads`: intra-operator threads of one session. Workers share cores, so one is the default.
    `load_latency_budget_ms`: a model whose median over 16 users x 200 candidates is slower than this is
    refused at load.
    """

    provider: Provider = "auto"
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    load_latency_budget_ms: Annotated[float, msgspec.Meta(gt=0)] = 250.0
