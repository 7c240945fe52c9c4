"""The command line: ``main`` is the entry point, ``commands`` lists the commands, one module per group of commands."""
