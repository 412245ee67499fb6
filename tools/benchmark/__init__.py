"""One measurement per module, with `add_arguments(parser)` and `run(config, arguments)`, for scripts/benchmark.py."""
