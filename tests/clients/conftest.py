"""The scripts of clients run in processes of their own, and import what this environment may lack."""

collect_ignore_glob = ["*_client.py", "node_clients.py"]
