"""Runs on disk and in a pipe: headers, events in columns, and files that are whole or not there."""
