"""What may happen to a run, and how the run must end: see cases.py."""
