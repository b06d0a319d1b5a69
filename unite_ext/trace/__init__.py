"""What a generation was decided by, token by token: recorded, saved, and shown in a browser or on a terminal."""

from .record import DECISIONS, TraceStep
from .trace import Trace, load_traces, save_traces

__all__ = ["DECISIONS", "Trace", "TraceStep", "load_traces", "save_traces"]
