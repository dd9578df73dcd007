"""SAM, the bridge between programs and an I2P router: messages, keys, sessions and streams."""
