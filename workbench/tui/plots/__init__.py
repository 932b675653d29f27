"""What charts are drawn with: a canvas of cells, colours by name, and three ways to put data on it.

A chart fills a `Canvas` with numpy; `Canvas.strips` makes lines of it for a widget of Textual's
line API. `bars` draws stacks and sparklines in eighths of a cell, `raster` categories in half
cells, `braille` points and lines in eighths by quarters. Each has a way without colours and one in
plain ASCII, where shape says what colour says otherwise.
"""
