"""What the API stores: files, cached contents, batches."""
