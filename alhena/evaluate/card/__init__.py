"""The report card: results of any number of models side by side, as page, picture, Markdown and JSON."""
