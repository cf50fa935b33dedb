"""Candidates: the few hundred items worth scoring for a user, from every source at once."""

from serving.retrieval.candidates import SOURCES, Context, Retriever, user_context

__all__ = ["SOURCES", "Context", "Retriever", "user_context"]
