"""The Faust app that watches: statistics, dead letters, models and lag, as metrics and a live page."""
