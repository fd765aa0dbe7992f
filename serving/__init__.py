"""The gRPC server: its configuration and life, the engine, the services and the transports."""
