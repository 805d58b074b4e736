"""Streams and events."""

from .._streams import Event, Graph, Stream, get_current_stream, get_elapsed_time

__all__ = ["Event", "Graph", "Stream", "get_current_stream", "get_elapsed_time"]
