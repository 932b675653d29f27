"""The screen that lists scenarios and runs, edits a scenario, and says what it would do."""
