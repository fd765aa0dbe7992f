"""Images: finding them in folders, reading their headers, and decoding them to pixels."""
