"""The artifact: manifest, certificate, sealing, image statistics, and the model repository."""
