"""What scripts/quickstart.sh needs besides train.py, eval.py and export.py."""
