"""Traces: who decided each token of a text, saved to files and shown in a browser or on a terminal."""

from .record import DECISIONS, TraceStep
from .trace import Trace, load_traces, save_traces

__all__ = ["DECISIONS", "Trace", "TraceStep", "load_traces", "save_traces"]
