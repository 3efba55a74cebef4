"""LXAlgo's way to the unified database."""
