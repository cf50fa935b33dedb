"""Settings of the ranker at serving time. Imports neither torch nor onnxruntime."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
GraphOptimization = Literal["disabled", "basic", "extended", "all"]
Padding = Literal["auto", "on", "off"]


class RankerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How workers run the exported ranker.

    `provider`: `auto` takes CUDA when the machine has it, else the CPU; what is in force is read back from
    the session.
    `threads`: intra-operator threads of one session. Workers share cores, so one is the default.
    `graph_optimization`: how far ONNX Runtime rewrites the graph at load; `all` but for comparisons.
    `padding`: round users, history and candidates of a call up to a few sizes; `auto` does so on a GPU only.
    `cuda_graph`: record each size once as a CUDA graph and replay it; with `provider` cuda or tensorrt.
    `load_latency_budget_ms`: a model whose median over 16 users x 200 candidates is slower than this is
    refused at load.
    `shadow_first`: what the trainer publishes is not served at once: workers score it beside the live version
    on the same live queries, and it is promoted or dropped by what users do next.
    `shadow_share`: share of the queries that a version beside the live one is scored on, too.
    `shadow_min_events`, `shadow_max_events`: judged events, over all workers, before a verdict on two
    versions, and after which there is one in any case.
    `rollback_alpha`: how likely it may be, at most, that a version no worse than the other is found worse,
    however often one looks.
    `probation_events`: for so many judged events after a swap the version before goes on being scored beside
    the new one, and is live again when it is found better; 0 turns that off.
    `context_keys`: keys of the `context` of events and requests that the networks read, hashed
    (`serving.ranker.hashing`). Workers and trainer need the same; a version that was trained with others is
    refused.
    """

    provider: Provider = "auto"
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    graph_optimization: GraphOptimization = "all"
    padding: Padding = "auto"
    cuda_graph: bool = False
    load_latency_budget_ms: Annotated[float, msgspec.Meta(gt=0)] = 250.0
    shadow_first: bool = False
    shadow_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.25
    shadow_min_events: Annotated[int, msgspec.Meta(ge=1)] = 200
    shadow_max_events: Annotated[int, msgspec.Meta(ge=1)] = 5000
    rollback_alpha: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.01
    probation_events: Annotated[int, msgspec.Meta(ge=0)] = 2000
    context_keys: Annotated[tuple[str, ...], msgspec.Meta(max_length=16)] = ()
