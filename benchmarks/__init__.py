"""Side-by-side measurements: `python -m benchmarks` runs them, prints tables and keeps a JSON file.

Every row sets what this project does beside what one would otherwise run, on the same work, in one
run with alternating repetitions.  README.md says what each row compares.
"""
