"""The chaos run: real workers, a real broker, faults by a seed, and an audit of what they have left."""
