"""Runs Shortseller's own run() for some ticks, in the bot's folder: python drive_shortseller.py TICKS."""

import random
import sys

import main
from config.settings import Settings


class Ticks:
    """A stop event that is set after so many ticks."""

    def __init__(self, left: int) -> None:
        self.left = left

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0

    def wait(self, seconds: float) -> None:
        pass


random.seed(int(sys.argv[1]))
main.run(Settings(), Ticks(int(sys.argv[1])))
