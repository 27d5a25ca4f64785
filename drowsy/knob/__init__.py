"""What is set and what it buys: rates in tensors, schedules, costs, operating points."""
