"""Compiles training and evaluation for an Ascend on a machine that has none; README.md says what that proves."""
