"""Candidates: the few hundred items worth scoring for a user, from every source at once."""

from serving.retrieval.candidates import SOURCES, FactorCandidates, Retriever

__all__ = ["SOURCES", "FactorCandidates", "Retriever"]
