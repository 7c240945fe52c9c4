"""What a server needs beside the methods: keys, connections, settings, operations, and the description of the API."""
