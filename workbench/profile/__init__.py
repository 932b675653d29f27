"""Where the time of steps goes: traces, gaps, kernel classes, rooflines, and pictures of them.

Everything here works on recorded data, without torch and without a GPU; what records is in
`engine.profiling`.
"""
