"""Negative controls: programs that are not exactly once, to show that the auditor can see it."""
