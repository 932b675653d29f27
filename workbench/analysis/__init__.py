"""Behind `explain` and `compare`: arithmetic over tables of runs, and their cost models again."""
