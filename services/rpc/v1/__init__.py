"""Messages and stubs of protocol version 1, generated from ``proto/lowdimfa/services/rpc/v1``; see `tools.stubs`."""
