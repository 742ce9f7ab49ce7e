"""What one Postgres carries, and where the limits are: measured costs, and a simulation that uses them.

`python -m bench.scaling` measures, simulates and prints.
"""
