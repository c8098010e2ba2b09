"""Where the checkout lies that the tests are of; not all of it is in the installed package."""

from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
