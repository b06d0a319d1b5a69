"""Code that the benchmarks share: timing, CSV files, cases, rivals; and commands that draw, tabulate and compare."""
