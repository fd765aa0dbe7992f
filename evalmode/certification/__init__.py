"""What is proven of a network before it is published, and by ``evalmode check`` ever after."""
