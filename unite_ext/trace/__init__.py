"""What a generation was decided by, token by token: recorded, saved, and shown in a browser or on a terminal."""

from .files import load_traces, save_traces
from .record import DECISIONS, Trace, TraceStep

__all__ = ["DECISIONS", "Trace", "TraceStep", "load_traces", "save_traces"]
