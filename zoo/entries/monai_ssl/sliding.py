"""The name under which `zoo.entries.monai_ssl.segment` was run before; it still is."""

from zoo.entries.monai_ssl.segment import main
from zoo.training.args import run_command

if __name__ == "__main__":
    run_command(main)
