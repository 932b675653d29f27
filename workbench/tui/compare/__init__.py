"""The compare screen: two runs side by side, and where their decisions part."""
