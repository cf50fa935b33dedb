"""Vectors of what items are: their text, their images or sound, and embeddings given with them."""
