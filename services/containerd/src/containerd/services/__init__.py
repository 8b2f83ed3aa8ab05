"""The gRPC services: each turns wire messages into calls of a store or of the domain, and its answer into messages."""
