"""Freshet's data plane: Kafka in, Kafka out."""

__version__ = "0.1.0"
