"""Messages and stubs of protocol version 1, generated from ``proto/services/rpc/v1``; see `services.rpc.generate`."""
