"""The five screens and the dialogs opened from them."""
