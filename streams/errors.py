"""Every error that Freshet raises on purpose, and what an operator does about it.

::

    FreshetError                     printed by the command line as one line, exit 1
    ├── SettingsError                a key of freshet.toml or FRESHET_* is wrong: correct it
    ├── BrokerUnavailableError       no broker answers at that address: start it, or mend the address
    ├── EmbeddedBrokerError          the embedded broker could not be set up or started
    ├── TopicLayoutError             topics missing or not co-partitioned: `freshet topics create`, or migrate
    ├── DatasetError                 a data set can't be fetched or read
    ├── ProducerBrokenError          too many of the latest records are rejected: mend the producer
    ├── StateError                   stored state does not fit what reads it
    │   ├── ChangelogError           `user-state` holds a record that this version can't read
    │   ├── LearningLogError         `interactions` holds a record that can't be read or may not be applied
    │   └── DataLossError            records that were needed are no longer in the log
    ├── WorkerFencedError            another process has this worker's place: one --id for each worker
    └── TransactionLostError         memory is ahead of the log: the worker must restore from it
"""

from __future__ import annotations

__all__ = [
    "BrokerUnavailableError",
    "ChangelogError",
    "DataLossError",
    "DatasetError",
    "EmbeddedBrokerError",
    "FreshetError",
    "LearningLogError",
    "ProducerBrokenError",
    "SettingsError",
    "StateError",
    "TopicLayoutError",
    "TransactionLostError",
    "WorkerFencedError",
]


class FreshetError(Exception):
    """Base of all errors that tell the operator what to do."""


class SettingsError(FreshetError):
    """A setting is unknown, of the wrong type or out of range."""


class BrokerUnavailableError(FreshetError):
    """No Kafka broker answered in time."""


class EmbeddedBrokerError(FreshetError):
    """The embedded broker could not be installed, started or stopped."""


class TopicLayoutError(FreshetError):
    """Topics are missing, or co-partitioned topics differ in their partition counts."""


class DatasetError(FreshetError):
    """A data set could not be fetched or parsed."""


class ProducerBrokenError(FreshetError):
    """The share of rejected records passed the limit: a producer is broken."""


class StateError(FreshetError):
    """Stored state and the code or settings that read it do not fit."""


class ChangelogError(StateError):
    """A record of `user-state` can't be read."""


class LearningLogError(StateError):
    """A record of `interactions` can't be read, or was written under other settings."""


class DataLossError(StateError):
    """The log no longer holds records that were still needed."""


class WorkerFencedError(FreshetError):
    """Another process runs under this worker's id, or has taken its partitions over."""


class TransactionLostError(FreshetError):
    """A transaction failed or timed out, so memory is ahead of the log."""
