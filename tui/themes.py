"""A dark and a light theme. Blue and orange tell things apart for every kind of colour vision."""

from textual.theme import Theme

DARK = Theme(
    name="kinbase-dark",
    primary="#6cb6ff",
    secondary="#9db4d0",
    accent="#f5a742",
    warning="#f5a742",
    error="#ff7b72",
    success="#6cb6ff",
    foreground="#d7dee8",
    background="#10141b",
    surface="#161b24",
    panel="#1e2530",
    dark=True,
    variables={"border": "#3b4657", "border-blurred": "#2c3542", "footer-key-foreground": "#f5a742"},
)

LIGHT = Theme(
    name="kinbase-light",
    primary="#0a5cad",
    secondary="#44607f",
    accent="#b35900",
    warning="#b35900",
    error="#b3261e",
    success="#0a5cad",
    foreground="#1b2430",
    background="#f6f8fa",
    surface="#ffffff",
    panel="#e8edf3",
    dark=False,
    variables={"border": "#9fb0c3", "border-blurred": "#cbd5e0", "footer-key-foreground": "#b35900"},
)
