"""What the server answers, neutral to transport: a parsed request and its call go in, a reply comes out."""
