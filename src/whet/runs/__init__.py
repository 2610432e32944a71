"""A run is a directory: config, events, episodes, checkpoints, evaluations. Killing it at any moment loses nothing committed."""

from whet.runs.run import JsonState, Run, Saveable
from whet.runs.store import EpisodeStore

__all__ = ["EpisodeStore", "JsonState", "Run", "Saveable"]
