"""The work of each `zoo` command; a command imports its module when it is called."""
