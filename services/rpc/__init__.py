"""Foundations of everything that talks over gRPC: messages, tensors, security, servers, connections."""
