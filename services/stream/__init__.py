"""The stream by which blocks send each other tensors, each message once and in order, and its carriers."""
