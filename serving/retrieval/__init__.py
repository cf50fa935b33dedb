"""Candidates: the few hundred items worth scoring for a user, from every source at once."""

from serving.retrieval.candidates import SOURCES, Candidates, Context, retrieve, user_context

__all__ = ["SOURCES", "Candidates", "Context", "retrieve", "user_context"]
