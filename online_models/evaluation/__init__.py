"""Evaluation of online models on interactions in order of time: full ranking, never sampled.

It knows no Kafka and no files: `protocols` takes interactions and models, `results` makes figures of a run,
`significance` compares two models, `report` draws a page, `peers` puts other libraries beside ours.
"""

from __future__ import annotations
