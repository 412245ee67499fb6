"""Faults injected into real trainings, for `python tools/drill`; each fault is a function that returns an `Outcome`."""
