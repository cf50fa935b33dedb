"""Beginning where an earlier network ended, with other items, event types or content than it knew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from serving.training.networks.base import SequenceNetwork

__all__ = ["WarmStart", "Weights", "copy_weights"]

Weights = dict[str, npt.NDArray[np.float32]]
Content = tuple[tuple[str, int], ...]

_PER_ITEM = ("item_embedding.weight", "item_bias")
_PER_TYPE = ("type_embedding.weight",)
_PER_CONTENT = ("content.weight",)


@dataclass(frozen=True, slots=True)
class WarmStart:
    """An earlier network: its vocabulary (item id of place 1, 2, ...), its weights by parameter name, the
    names of its event types (type 1, 2, ...), and what its content vectors are made of: (name,
    components)."""

    vocabulary: tuple[str, ...]
    weights: Weights
    event_types: tuple[str, ...] = ()
    content: Content = ()


def copy_weights(
    network: SequenceNetwork,
    vocabulary: tuple[str, ...],
    warm_start: WarmStart,
    event_types: tuple[str, ...] = (),
    content: Content = (),
) -> int:
    """Copy the weights that fit: rows of items by id, of event types by name, columns of content by name, the
    rest by name and shape. What is new keeps its first values. Gives the number of items copied, 0 where the
    items' vectors are of another length."""
    items = _matches(warm_start.vocabulary, vocabulary)
    types = _matches(warm_start.event_types, event_types)
    columns = _components(warm_start.content), _components(content)
    blocks = _matches(*columns)
    copied = 0
    with torch.no_grad():
        for name, parameter in network.state_dict().items():
            if name not in warm_start.weights:
                continue
            source = torch.from_numpy(warm_start.weights[name]).to(parameter)
            if _ends_with(name, _PER_CONTENT) and _fit(source.T, parameter.T):
                if (len(columns[0]), len(columns[1])) == (source.shape[1], parameter.shape[1]):
                    _copy_rows(parameter.T, source.T, blocks, 0)
            elif _ends_with(name, _PER_TYPE) and _fit(source, parameter):
                parameter[0] = source[0]
                _copy_rows(parameter, source, types, 1)
            elif _ends_with(name, _PER_ITEM) and _fit(source, parameter):
                parameter[[0, -1]] = source[[0, -1]]
                _copy_rows(parameter, source, items, 1)
                copied = len(items[0]) if name == "item_embedding.weight" else copied
            elif source.shape == parameter.shape:
                parameter.copy_(source)
    return copied


def _matches(old: Sequence[object], new: Sequence[object]) -> tuple[Tensor, Tensor]:
    """Places in `old` and in `new` of what stands in both."""
    rows = {name: row for row, name in enumerate(old)}
    found = [(rows[name], row) for row, name in enumerate(new) if name in rows]
    pairs = torch.tensor(found, dtype=torch.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _components(content: Content) -> list[tuple[str, int]]:
    """The columns of content vectors: each block's components by name and number, then each one's mask; a
    block of another size is another block."""
    columns = [(f"{name}:{size}", k) for name, size in content for k in range(size)]
    return columns + [(name, -1) for name, _ in content]


def _ends_with(name: str, endings: tuple[str, ...]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _fit(source: Tensor, parameter: Tensor) -> bool:
    return source.shape[1:] == parameter.shape[1:]


def _copy_rows(parameter: Tensor, source: Tensor, pairs: tuple[Tensor, Tensor], behind: int) -> None:
    """Rows `behind` further down in both, since the first may be padding."""
    parameter[pairs[1] + behind] = source[pairs[0] + behind]
