"""What models are said to be, held against their weights."""
