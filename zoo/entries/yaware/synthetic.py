"""The former name of `zoo.entries.yaware.phantom`, which `python -m` still runs."""

from zoo.entries.yaware.phantom import main
from zoo.training.args import run_command

if __name__ == "__main__":
    run_command(main)
