"""A knob as a page to send: one file that says what was measured, how, and what it does not say."""

from drowsy.reporting.page import write_report

__all__ = ["write_report"]
