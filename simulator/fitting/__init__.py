"""From measured steps to a profile's fit: one module for each part of what a step costs."""
