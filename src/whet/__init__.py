"""whet makes LLM agents better and proves it."""

__version__ = "0.1.0"
