"""Candidates: the few hundred items worth scoring for a user, from every source at once."""

from serving.retrieval.candidates import SOURCES, FactorCandidates, Retriever
from serving.retrieval.content import ContentCandidates

__all__ = ["SOURCES", "ContentCandidates", "FactorCandidates", "Retriever"]
