"""What serving would have shown before each event of the learning log; see `Examples`."""

from serving.training.examples import Examples

__all__ = ["Examples"]
