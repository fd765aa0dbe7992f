"""How requests arrive. Only here is gRPC's server known."""
