"""What each `zoo` command does and prints; a command imports its module when it is called."""
