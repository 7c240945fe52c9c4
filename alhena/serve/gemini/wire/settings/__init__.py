"""Settings in a request: how an answer is generated, how media are read, thinking, tools, safety."""
