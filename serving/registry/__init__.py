"""Published versions: manifest, store, and the way from a version to the ranker in force."""
