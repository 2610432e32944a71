"""Tools: a typed Python function with a docstring becomes something that a model can call."""

from whet.tools.function import Tool, tool

__all__ = ["Tool", "tool"]
