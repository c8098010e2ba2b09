"""The former name of `zoo.entries.monai_ssl.segment`, which `python -m` still runs."""

from zoo.entries.monai_ssl.segment import main
from zoo.training.args import run_command

if __name__ == "__main__":
    run_command(main)
