"""Models as evaluation sees them: log-likelihoods of continuations, and completions."""
