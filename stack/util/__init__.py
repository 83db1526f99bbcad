"""What every room may use: errors, durable files, keyed random numbers, progress."""
