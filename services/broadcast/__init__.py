"""The error broadcast: the head publishes, every block subscribes."""
