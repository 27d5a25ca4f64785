"""Tuning for video: ways to spend less on frames, chosen and reported on clips."""
