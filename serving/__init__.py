"""Requests -> answers: the gRPC server, its scheduler, services and transports."""
