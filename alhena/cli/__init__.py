"""The command line: ``main`` assembles the commands, one module per group of commands."""
