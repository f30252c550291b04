"""The distributed runtime of lowdimfa: blocks in actors, errors over gRPC, and what surrounds them."""
