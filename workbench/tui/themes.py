"""The workbench's own themes, and the data colours that every theme has to offer.

A chart asks for `data-prefill`, never for a colour. The colours of categories that stand side by
side differ in luminance as well as in hue, so that they can still be told apart in greys. Themes
that come with Textual know nothing of these variables; `data_variables` gives theirs by brightness.
"""

from __future__ import annotations

from typing import Final

from textual.theme import Theme

DARK: Final[dict[str, str]] = {
    "data-prefill": "#4c8dff",
    "data-hit": "#8459cf",
    "data-decode": "#3edc85",
    "data-step": "#f5a742",
    "data-cached": "#6b5b95",
    "data-free": "#1b2029",
    "data-queue": "#b8862b",
    "data-preempt": "#ff5577",
    "data-transfer": "#5fd7ff",
    "data-other": "#8a93a3",
    "data-lower": "#5b9bff",
    "data-higher": "#ff5c7a",
    "data-same": "#4a5263",
    "data-past": "#4c8dff",
    "data-future": "#5a6374",
    "data-cursor": "#ffffff",
    "data-selected": "#ffe16b",
    "data-limit": "#c9d1d9",
    "data-good": "#3edc85",
    "data-bad": "#ff5577",
    "data-warning": "#f5a742",
    "data-axis": "#6b7484",
    "data-age-new": "#ffe16b",
    "data-age-old": "#3b3f5c",
}

LIGHT: Final[dict[str, str]] = {
    "data-prefill": "#1f5fd0",
    "data-hit": "#5b2f9e",
    "data-decode": "#12915a",
    "data-step": "#b86a00",
    "data-cached": "#b9a8dd",
    "data-free": "#e4e7ec",
    "data-queue": "#a87a1a",
    "data-preempt": "#c9214a",
    "data-transfer": "#0b7fa8",
    "data-other": "#6b7280",
    "data-lower": "#1f5fd0",
    "data-higher": "#c9214a",
    "data-same": "#b8bec9",
    "data-past": "#1f5fd0",
    "data-future": "#b8bec9",
    "data-cursor": "#000000",
    "data-selected": "#c88a00",
    "data-limit": "#3a4150",
    "data-good": "#12805a",
    "data-bad": "#c9214a",
    "data-warning": "#a85f00",
    "data-axis": "#6b7280",
    "data-age-new": "#c88a00",
    "data-age-old": "#c9c4dc",
}

NIGHT: Final = Theme(
    name="workbench-night",
    primary="#4c8dff",
    secondary="#9068d9",
    accent="#f5a742",
    warning="#f5a742",
    error="#ff5577",
    success="#3edc85",
    foreground="#c9d1d9",
    background="#11141a",
    surface="#161a22",
    panel="#222a33",
    boost="#2b3440",
    dark=True,
    variables={
        **DARK,
        "footer-background": "#222a33",
        "footer-key-foreground": "#f5a742",
        "footer-description-foreground": "#c9d1d9",
        "input-selection-background": "#4c8dff 40%",
        "block-cursor-background": "#c9d1d9",
        "block-cursor-foreground": "#11141a",
        "border": "#3a4452",
        "border-blurred": "#2b3440",
    },
)

PAPER: Final = Theme(
    name="workbench-paper",
    primary="#1f5fd0",
    secondary="#6a3fb5",
    accent="#b86a00",
    warning="#a85f00",
    error="#c9214a",
    success="#12805a",
    foreground="#1f2430",
    background="#fafaf7",
    surface="#f2f2ee",
    panel="#e4e5e0",
    boost="#d8dad4",
    dark=False,
    variables={
        **LIGHT,
        "footer-background": "#e4e5e0",
        "footer-key-foreground": "#a85f00",
        "footer-description-foreground": "#1f2430",
        "block-cursor-background": "#1f2430",
        "block-cursor-foreground": "#fafaf7",
        "border": "#b8bec9",
        "border-blurred": "#d0d4da",
    },
)

OWN_THEMES: Final = (NIGHT, PAPER)
DEFAULT_THEME: Final = NIGHT.name


def data_variables(dark: bool) -> dict[str, str]:
    """The data colours of a theme that brings none of its own, by variable name."""
    return DARK if dark else LIGHT
