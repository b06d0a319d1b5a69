"""What the benchmarks are made of: timing, CSV files, cases, rivals; and commands that draw, tabulate and compare."""
