"""Processes of a job: launching them, their devices and ranks, logs, signals, and the collectives between them."""
