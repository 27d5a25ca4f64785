"""Holds budgets of latency, watts, temperature and joules by turning a knob between batches."""

from drowsy.governor.board import Board, Reading
from drowsy.governor.governor import Change, Governor, State

__all__ = ["Board", "Change", "Governor", "Reading", "State"]
