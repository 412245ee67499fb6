"""What the first person with an Ascend runs: a ladder of checks and measurements; docs/acceptance.md explains it."""
